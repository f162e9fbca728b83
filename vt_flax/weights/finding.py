"""Finds the ResNet among the arrays of a checkpoint: its prefix, names and head."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from vt_flax.errors import UserError, first_names
from vt_flax.weights.files import FLOATS, SAVE_ALONE, Array
from vt_flax.weights.names import COUNTER, belongs_to_resnet

# What PyTorch's wrappers (torch.compile, FSDP) put between a module and its parts.
_WRAPPER = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
# In the first block of a stage: of named stages, or of numbered ones, as in
# nn.Sequential(*resnet.children()). What stands before it is the prefix.
_FIRST_BLOCK = re.compile(
    rf"(|.*\.)(layer1|[1-9]\d*)\.(?:{_WRAPPER})*0\.(?:{_WRAPPER})*conv1\.weight"
)
# Modules that give the logits. Around the linear map may be others without arrays.
_HEADS = ("fc", "head", "classifier", "last_linear", "linear", "cls_head")
# Names of averaged weights; the raw ones beside them are the default.
_EMA = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?)(?:[._]|$)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Found:
    """A ResNet among the arrays of a file.

    Attributes:
      section: names of the nested dictionaries that hold it, joined by dots.
      prefix: what its keys begin with in that section.
      head: name of the linear map that is taken as the head; empty if none is.
      classes: number of its classes; 0 if there is none.
      names: torchvision's names of its arrays and the head's, by their names in the
        file.
      left: names of all other arrays, by what they belong to.
      others: other ResNets in the file, as `--section` takes them.
    """

    section: str
    prefix: str
    head: str
    classes: int
    names: dict[str, str]
    left: dict[str, list[str]]
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
      UserError: if there is no ResNet, or it is not clear which of several is meant, or
        which of several heads.
    """
    resnets = _resnets(arrays)
    if not resnets:
        raise _no_resnet(file, arrays)
    start = _choose(file, arrays, resnets, section)
    names = resnets[start]
    head, classes = _choose_head(file, _heads(arrays, start, resnets), num_classes)
    for part in ("weight", "bias"):
        if head and f"{head}.{part}" in arrays:
            names[f"{head}.{part}"] = f"fc.{part}"
    left: dict[str, list[str]] = {}
    for key in arrays:
        if key not in names:
            left.setdefault(_owner(key, start), []).append(key)
    nested = arrays[next(iter(names))].section
    return Found(
        section=nested,
        prefix=start.removeprefix(f"{nested}."),
        head=head,
        classes=classes,
        names=names,
        left=left,
        others=[_shown(other) for other in resnets if other != start],
    )


def _resnets(arrays: Mapping[str, Array]) -> dict[str, dict[str, str]]:
    """Returns the ResNets of a file: torchvision's names by those in the file.

    They are called by what their names in the file start with: section and prefix.
    """
    first_stages: dict[str, list[str]] = {}
    for key in arrays:
        if match := _FIRST_BLOCK.fullmatch(key):
            first_stages.setdefault(match[1], []).append(match[2])
    resnets = {}
    for start, stages in first_stages.items():
        numbers = [int(stage) for stage in stages if stage.isdecimal()]
        names = {}
        for key in arrays:
            if key.startswith(start):
                name = re.sub(_WRAPPER, "", key.removeprefix(start))
                if numbers:
                    name = _torchvision_name(name, min(numbers))
                if belongs_to_resnet(name):
                    names[key] = name
        # Other networks have blocks with numbers, too, but not a ResNet's stem.
        if not numbers or {"conv1.weight", "layer0.0.weight"} & {*names.values()}:
            resnets[start] = names
    return resnets


def _torchvision_name(name: str, first_stage: int) -> str:
    """Returns torchvision's name for a child of a Sequential, called by its number."""
    number, dot, rest = name.partition(".")
    if not number.isdecimal():
        return name
    stem = ["layer0"] if first_stage == 1 else ["conv1", "bn1"]
    stage = int(number) - first_stage + 1
    if int(number) < len(stem):
        return f"{stem[int(number)]}.{rest}"
    return f"layer{stage}.{rest}" if 1 <= stage <= 4 else name


def _choose(
    file: pathlib.Path,
    arrays: Mapping[str, Array],
    resnets: Mapping[str, Mapping[str, str]],
    section: str,
) -> str:
    """Returns the start of the names of the ResNet that is meant."""
    starts = list(resnets)
    if section:
        inner = section.strip(".")
        starts = [start for start in resnets if start.rstrip(".") == inner]
        starts = starts or [
            start for start in resnets if inner and f".{inner}." in f".{start}"
        ]
        if not starts:
            raise UserError(
                f"{file}: --section {section}: no ResNet is there; choose from "
                + ", ".join(map(_shown, resnets))
            )
    starts = [start for start in starts if not _EMA.search(start)] or starts
    # A module that is registered twice is saved under both names.
    first, *more = starts
    others = [s for s in more if not _same(arrays, resnets[first], resnets[s])]
    if others:
        raise UserError(
            f"{file} holds {1 + len(others)} ResNets: choose one by --section: "
            + ", ".join(map(_shown, [first, *others]))
        )
    return first


def _same(
    arrays: Mapping[str, Array], first: Mapping[str, str], second: Mapping[str, str]
) -> bool:
    """Returns whether two ResNets have the same names and values."""
    keys = {name: key for key, name in second.items()}
    if {*first.values()} != {*keys}:
        return False
    for key, name in first.items():
        one, other = arrays[key], arrays[keys[name]]
        if name.endswith(COUNTER):
            continue
        if one.shape != other.shape or one.dtype not in FLOATS:
            return False
        if not np.array_equal(one.read(), other.read()):
            return False
    return True


def _heads(
    arrays: Mapping[str, Array], start: str, resnets: Mapping[str, Mapping[str, str]]
) -> dict[str, int]:
    """Returns the numbers of classes of the linear maps over a ResNet, by their names.

    They are sought beside its stages and beside each module that it is a part of.
    """
    names = resnets[start]
    last_stage, features = "", 0
    for key, name in names.items():
        if re.fullmatch(r"layer4\.0\.conv[123]\.weight", name):
            last_stage = key.removeprefix(start).partition(".")[0]
            features = max(features, *arrays[key].shape[:1])
    heads = {}
    parents = start.split(".")[:-1]
    for depth in range(len(parents), -1, -1):
        scope = "".join(f"{part}." for part in parents[:depth])
        part = [*parents, last_stage][depth]
        if scope in resnets and scope != start:
            break  # what lies beside another ResNet is its head
        groups: dict[str, list[str]] = {}
        for key in arrays:
            child = key.removeprefix(scope).partition(".")[0]
            if not key.startswith(scope) or key in names:
                continue
            if child in _HEADS:
                groups.setdefault(child, []).append(key)
            # What follows in a Sequential.
            elif part.isdecimal() and child.isdecimal() and int(child) > int(part):
                groups.setdefault("", []).append(key)
        for group in groups.values():
            module = group[0].rpartition(".")[0]
            weight, bias = f"{module}.weight", f"{module}.bias"
            if {weight} <= {*group} <= {weight, bias}:
                shape = arrays[weight].shape
                if shape[1:2] == (features,) and shape[2:] in ((), (1, 1)):
                    heads[module] = shape[0]
    return heads


def _choose_head(
    file: pathlib.Path, heads: dict[str, int], num_classes: int
) -> tuple[str, int]:
    fitting = {h: n for h, n in heads.items() if num_classes in (0, n)}
    if len(fitting) > 1:
        raise UserError(
            f"{file} has several heads: choose one by --num_classes, or remove others: "
            + ", ".join(f"{head} ({classes})" for head, classes in fitting.items())
        )
    return next(iter(fitting.items()), ("", 0))


def _owner(key: str, start: str) -> str:
    """Returns what an array outside the ResNet belongs to: its first own name."""
    parts, common = key.split("."), 0
    for ours, theirs in zip(start.split(".")[:-1], parts, strict=False):
        if ours != theirs:
            break
        common += 1
    return ".".join(parts[: common + 1])


def _shown(start: str) -> str:
    return start.rstrip(".") or "."


def _no_resnet(file: pathlib.Path, arrays: Mapping[str, Array]) -> UserError:
    keys = [key for key in arrays if not key.endswith(COUNTER)]
    if not keys:
        return UserError(f"{file} holds not one tensor: {SAVE_ALONE}")
    advice = "choose a file of torchvision's or timm's ResNets"
    for mark, library in (
        (r"embedder\.embedder\.convolution|encoder\.stages\.", "Hugging Face's"),
        (r"res2\.0\.", "Detectron2's"),
    ):
        if any(re.search(mark, key) for key in keys):
            advice = f"its names seem to be {library}, which are not read: {advice}"
            break
    return UserError(
        f"{file}: no ResNet with torchvision's or timm's names is in it (it holds "
        f"{first_names(keys)}): {advice}"
    )
