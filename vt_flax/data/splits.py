"""Split strings in the syntax of TFDS: `train[:80%]`, `train+validation`, `all`.

Class folders take the same strings as TFDS datasets, parsed by TFDS.
"""

import re
from typing import Any

import numpy as np

from vt_flax.data.host import tensorflow
from vt_flax.errors import UserError, nearest

# All splits together.
ALL = "all"
_PLUS = re.compile(r"\s*\+\s*")


def split_parts(split: str) -> list[tuple[str, str]]:
    """Returns name and slice of each summand: `a[:5]+b` has `a`, `[:5]` and `b`, ``.

    Raises:
      UserError: if one is not of that form.
    """
    parts = []
    for part in _PLUS.split(split):
        match = re.fullmatch(r"([^\[\]]+)(\[[^\[\]]*\])?", part)
        if not match:
            raise UserError(
                f"split {split!r}: write a name, a slice such as 'train[:80%]', or "
                "several of them joined by +"
            )
        parts.append((match[1], match[2] or ""))
    return parts


def slice_ends(slice_text: str, count: int) -> tuple[int, int]:
    """Returns where a slice such as `[:80%]` of `count` examples begins and ends.

    Raises:
      ValueError: if it is no slice, or goes beyond the examples.
    """
    if not slice_text:
        return 0, count
    tensorflow()  # quietly, before TFDS imports it
    from tensorflow_datasets.core.splits import SplitInfo

    if "shard" in slice_text:
        raise ValueError("class folders have no shards")
    info = SplitInfo(name="split", shard_lengths=[count], num_bytes=0)
    ((_, first, last),) = _absolute(f"split{slice_text}", {"split": info})
    return first, last


def check_tfds_split(builder: Any, name: str, split: str) -> None:
    """Checks that a prepared TFDS dataset has a split, and examples in it.

    Args:
      builder: of the dataset.
      name: of the dataset, as the user wrote it.
      split: as the user wrote it.

    Raises:
      UserError: if it does not.
    """
    splits = builder.info.splits
    for base, slice_text in split_parts(split):
        if base not in splits and base != ALL:
            raise UserError(
                f"dataset {name!r} has no split {base!r}{nearest(base, splits)}"
            )
        if base == ALL and slice_text:
            raise UserError(
                f"split {split!r} of dataset {name!r}: {ALL!r} has no slices; choose "
                f"one of {', '.join(splits)}"
            )
    try:
        parts = _absolute(split, splits)
    except ValueError as error:
        raise UserError(f"split {split!r} of dataset {name!r}: {error}") from error
    if all(first == last for _, first, last in parts):
        raise UserError(f"split {split!r} of dataset {name!r} is empty")


def tfds_members(builder: Any, split: str) -> np.ndarray:
    """Returns the indices of a split's examples in all splits together, int64."""
    splits = builder.info.splits
    sizes = [info.num_examples for info in splits.values()]
    begins = dict(zip(splits, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    parts = [
        begins[name] + np.arange(first, last, dtype=np.int64)
        for name, first, last in _absolute(split, splits)
    ]
    return np.concatenate(parts)


def _absolute(split: str, infos: Any) -> list[tuple[str, int, int]]:
    """Returns name, begin and end of each summand of a split.

    Raises:
      ValueError: for what TFDS refuses, and slices that end before they begin.
    """
    from tensorflow_datasets.core.splits import AbstractSplit

    try:
        instructions = AbstractSplit.from_spec(split).to_absolute(infos)
    except ValueError as error:
        # The last of its lines says what is wrong.
        raise ValueError(str(error).strip().rpartition("\n")[2]) from error
    parts = []
    for one in instructions:
        count = infos[one.splitname].num_examples
        first = one.from_ or 0
        last = count if one.to is None else one.to
        if first > last:
            raise ValueError("a slice ends before it begins")
        parts.append((one.splitname, first, last))
    return parts
