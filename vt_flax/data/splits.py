"""Split strings in the syntax of TFDS: `train[:80%]`, `train+validation`, `all`."""

import re
from collections.abc import Mapping
from typing import Any

from vt_flax.data.host import tensorflow
from vt_flax.errors import UserError

# All splits together.
ALL = "all"


def split_parts(split: str) -> list[tuple[str, str]]:
    """Returns name and slice of each summand: `a[:5]+b` has `a`, `[:5]` and `b`, ``.

    Unlike TFDS's parser, it takes names of any letters, as folders have them.

    Raises:
      UserError: if one is not of that form.
    """
    parts = []
    for part in re.split(r"\s*\+\s*", split):
        match = re.fullmatch(r"([^\[\]]+)(\[[^\[\]]*\])?", part)
        if not match:
            raise UserError(
                f"split {split!r}: write a name, a slice such as 'train[:80%]', or "
                "several of them joined by +"
            )
        parts.append((match[1], match[2] or ""))
    return parts


def slice_bounds(slice_text: str, count: int) -> tuple[int, int]:
    """Returns where a slice such as `[:80%]` of `count` examples begins and ends.

    Raises:
      ValueError: if it is no slice, or goes beyond the examples.
    """
    if not slice_text:
        return 0, count
    tensorflow()  # without its GPUs, before TFDS imports it
    from tensorflow_datasets.core.splits import SplitInfo

    info = SplitInfo(name="split", shard_lengths=[count], num_bytes=0)
    ((_, begin, end),) = tfds_slices(f"split{slice_text}", {"split": info})
    return begin, end


def tfds_slices(split: str, infos: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Returns name, begin and end of each summand of a split.

    `infos` has TFDS's `SplitInfo` of each split.

    Raises:
      ValueError: for what TFDS rejects, and slices that end before they begin.
    """
    from tensorflow_datasets.core.splits import AbstractSplit

    try:
        instructions = AbstractSplit.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError) as error:
        # The last of its lines says what is wrong.
        raise ValueError(str(error).strip().rpartition("\n")[2]) from error
    slices = []
    for one in instructions:
        begin = one.from_ or 0
        end = infos[one.splitname].num_examples if one.to is None else one.to
        if begin > end:
            raise ValueError("a slice ends before it begins")
        slices.append((one.splitname, begin, end))
    return slices
