"""Decides which class each value of a folder's masks is."""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from vt_flax.data.mask_counts import MaskCounts, absent_classes
from vt_flax.data.masks import (
    IGNORE,
    MOST_CLASSES,
    NO_CLASS,
    identity_table,
    numbered_names,
)
from vt_flax.data.prepare.pair_files import PairFiles
from vt_flax.errors import UserError, first_names

# What 255 means: no label, or a class like every other value.
NO_LABEL, A_CLASS = "255", "none"


def assign_classes(
    folder: epath.Path,
    counts: MaskCounts,
    first: Mapping[int, PairFiles],
    names: Sequence[str],
    ignore_label: str,
) -> tuple[list[str], np.ndarray]:
    """Returns the names of the classes and a table (256,) of what each value becomes.

    Values are class indices, and 255 means no label. With `none` for `ignore_label`
    every value is a class: if the values are no indices, they are the classes in
    ascending order, provided that there are as many values as names.

    Args:
      folder: of the masks, for messages.
      counts: of all masks.
      first: for each value the first pair whose mask has it.
      names: of the classes; empty if there is no list of them.
      ignore_label: `255`, `none`, or empty if the user has not said.

    Raises:
      UserError: if a value is no class, fewer than two classes occur and none is named,
        or it is in doubt whether 255 is a class.
    """
    values = counts.values()
    labels = [v for v in values if v != IGNORE or ignore_label == A_CLASS]
    if IGNORE in values and not ignore_label:
        _check_unambiguous(folder, counts, labels, names)
    in_order = ignore_label == A_CLASS and (
        labels[-1] >= len(names) == len(labels)
        if names
        else IGNORE in labels and len(labels) <= MOST_CLASSES
    )
    if in_order:
        table = np.full(256, NO_CLASS, np.uint8)
        table[labels] = range(len(labels))
        names = names or numbered_names(range(len(labels)))
    else:
        _check_indices(counts, labels, first, len(names), ignore_label)
        names = names or numbered_names(range(max(labels, default=0) + 1))
        table = identity_table(len(names))
    if len(names) < 2:
        raise UserError(
            f"{folder}: one class is not enough; the masks have {counts.describe()}"
        )
    return list(names), table


def _check_unambiguous(
    folder: epath.Path, counts: MaskCounts, labels: list[int], names: Sequence[str]
) -> None:
    """Checks that 255 can only mean no label, as where every class has pixels too."""
    classes = names or numbered_names(range(max(labels, default=0) + 1))
    absent = [name for i, name in enumerate(classes) if i not in labels]
    if not absent and len(labels) > 1:
        return
    without = f", and none of {first_names(absent)}" if absent else ""
    raise UserError(
        f"{folder}: the masks have {counts.describe()}{without}: add --ignore_label "
        f"{A_CLASS} if {IGNORE} is a class, or --ignore_label {NO_LABEL} if it means "
        "no label"
    )


def _check_indices(
    counts: MaskCounts,
    labels: list[int],
    first: Mapping[int, PairFiles],
    named: int,
    ignore_label: str,
) -> None:
    """Checks that all values are indices of so many named classes, or of any if 0."""
    classes = named or MOST_CLASSES
    outside = [value for value in labels if value >= classes]
    if not outside:
        return
    nor = "" if ignore_label == A_CLASS else f", nor {IGNORE} for no label"
    hint = "store class indices, from 0"
    if named:
        hint += ", and name each of them in classes.txt, the background too"
    if outside == [IGNORE]:
        hint = f"use --ignore_label {NO_LABEL} if {IGNORE} means no label"
    if not ignore_label and not named:
        hint = (
            "if each of these values is a class, name them in classes.txt and add "
            f"--ignore_label {A_CLASS}"
        )
    elif not ignore_label and len(labels) == len(counts.values()) == classes:
        hint = (
            f"add --ignore_label {A_CLASS} if these are the {classes} classes in this "
            "order"
        )
    raise UserError(
        f"{first[outside[0]].mask}: value {outside[0]} is none of the {classes} "
        f"classes{nor}; the masks have {counts.describe()}: {hint}"
    )


def notes(
    counts: Mapping[str, MaskCounts],
    names: Sequence[str],
    table: np.ndarray,
    named: bool,
) -> list[str]:
    """Returns what a user should know of the values of masks before training.

    Args:
      counts: by split.
      names: of the classes.
      table: the class that each value is.
      named: whether the user has named the classes.
    """
    total = sum(counts.values(), MaskCounts())
    lines = []
    values = total.values()
    changed = [v for v in values if table[v] != v]
    if changed:
        pairs = (f"{value} is {names[table[value]]}" for value in values)
        lines.append(f"classes of the masks' values: {first_names(pairs)}")
    elif IGNORE in values:
        lines.append(
            f"{IGNORE} means no label; it has {total.pixels[IGNORE]:,} of "
            f"{total.pixels.sum():,} pixels"
        )
    absent = absent_classes(total.of_classes(table, len(names)), names)
    if absent:
        hint = (
            ""
            if named
            else "; if each of these values is a class, name them in classes.txt and "
            f"add --ignore_label {A_CLASS}"
        )
        lines.append(
            f"no pixel of {len(absent)} of {len(names)} classes "
            f"({first_names(absent)}): the masks have {total.describe()}{hint}"
        )
    for split, found in counts.items():
        missing = absent_classes(found.of_classes(table, len(names)), names)
        missing = [name for name in missing if name not in absent]
        if missing:
            lines.append(
                f"split {split} has no pixel of {len(missing)} of {len(names)} classes "
                f"({first_names(missing)})"
            )
    return lines
