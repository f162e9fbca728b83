"""Finds the ResNet among the arrays of a checkpoint: its prefix, names and head."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

from vt_flax.errors import UserError, first_names
from vt_flax.weights.files import SAVE_ALONE, Array
from vt_flax.weights.names import COUNTER

# In the first block of the first stage; the name before it is the prefix.
_FIRST_BLOCK = re.compile(r"(|.*\.)layer1\.0\.conv1\.weight")
# First names of a ResNet's parts, except its head's. A part that has no place in our
# models makes it another network.
_PARTS = re.compile(r"layer\d|conv\d|bn\d|stem|downsample")
# Modules that give the logits. Around the linear map may be others without arrays.
_HEADS = ("fc", "head", "classifier", "last_linear", "linear", "cls_head")
# Names of EMA weights; the raw ones beside them are the default.
_EMA = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?)(?:[._]|$)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Found:
    """A ResNet among the arrays of a file.

    Attributes:
      section: names of the nested dictionaries that hold it, joined by dots.
      prefix: common beginning of its keys in that section.
      head: name of the linear map that is taken as the head; empty if none is.
      classes: number of its classes; 0 if there is none.
      names: torchvision's names of its arrays and the head's, by their names in the
        file.
      others: other ResNets in the file, as `--section` takes them.
    """

    section: str
    prefix: str
    head: str
    classes: int
    names: dict[str, str]
    others: list[str]


def find_resnet(
    file: pathlib.Path,
    arrays: Mapping[str, Array],
    section: str = "",
    num_classes: int = 0,
) -> Found:
    """Finds the ResNet in a file.

    Args:
      file: the file, for messages.
      arrays: all its arrays: see `files.read_arrays`.
      section: section or prefix of the ResNet, where there are several: some of the
        names, joined by dots, that stand before its own; `.` for none.
      num_classes: number of classes of the head to take; 0: of whichever there is.

    Raises:
      UserError: if there is no ResNet, or several and `section` does not choose one, or
        several heads.
    """
    starts = [match[1] for key in arrays if (match := _FIRST_BLOCK.fullmatch(key))]
    if not starts:
        keys = [key for key in arrays if not key.endswith(COUNTER)]
        raise UserError(
            f"{file}: no ResNet with torchvision's or timm's names is in it (it holds "
            f"{first_names(keys) or 'not one tensor'}): choose another, or {SAVE_ALONE}"
        )
    start = _choose(file, starts, section)
    heads = _heads(arrays, start, starts)
    heads = {head: n for head, n in heads.items() if num_classes in (0, n)}
    if len(heads) > 1:
        raise UserError(
            f"{file} has several heads: choose one by --num_classes, or remove others: "
            + ", ".join(f"{head} ({classes})" for head, classes in heads.items())
        )
    head, classes = next(iter(heads.items()), ("", 0))
    names = {
        key: key.removeprefix(start)
        for key in arrays
        if key.startswith(start) and _PARTS.match(key.removeprefix(start))
    }
    for part in ("weight", "bias"):
        if head and f"{head}.{part}" in arrays:
            names[f"{head}.{part}"] = f"fc.{part}"
    nested = arrays[next(iter(names))].section
    return Found(
        section=nested,
        prefix=start.removeprefix(f"{nested}."),
        head=head,
        classes=classes,
        names=names,
        others=[_shown(other) for other in starts if other != start],
    )


def _choose(file: pathlib.Path, starts: list[str], section: str) -> str:
    """Returns the prefix, with its section, of the ResNet that is meant."""
    chosen = starts
    if section:
        inner = section.strip(".")
        chosen = [start for start in starts if start.rstrip(".") == inner]
        chosen = chosen or [s for s in starts if inner and f".{inner}." in f".{s}"]
        if not chosen:
            raise UserError(
                f"{file}: --section {section}: no ResNet is there; choose from "
                + ", ".join(map(_shown, starts))
            )
    chosen = [start for start in chosen if not _EMA.search(start)] or chosen
    if len(chosen) > 1:
        raise UserError(
            f"{file} holds {len(chosen)} ResNets: choose one by --section: "
            + ", ".join(map(_shown, chosen))
        )
    return chosen[0]


def _heads(
    arrays: Mapping[str, Array], start: str, starts: list[str]
) -> dict[str, int]:
    """Returns the number of classes of each linear map over a ResNet, by its name.

    They are sought beside its stages and beside each module that it is a part of.
    """
    convs = [f"{start}layer4.0.conv{i}.weight" for i in (1, 2, 3)]
    features = max((arrays[key].shape[0] for key in convs if key in arrays), default=0)
    parents = start.split(".")[:-1]
    heads = {}
    for depth in range(len(parents), -1, -1):
        scope = "".join(f"{parent}." for parent in parents[:depth])
        if scope in starts and scope != start:
            break  # what lies beside another ResNet is its head
        for name in _HEADS:
            keys = {key for key in arrays if key.startswith(f"{scope}{name}.")}
            module = min(keys, default="").rpartition(".")[0]
            weight = f"{module}.weight"
            # Of a head with several layers none is taken.
            if weight in keys and keys <= {weight, f"{module}.bias"}:
                shape = arrays[weight].shape
                if shape[1:] == (features,):
                    heads[module] = shape[0]
    return heads


def _shown(start: str) -> str:
    """Returns a prefix as `--section` takes it."""
    return start.rstrip(".") or "."
