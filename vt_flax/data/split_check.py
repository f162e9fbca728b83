"""Checks training against evaluation split before a run: classes, and common examples.

Datasets of TFDS are not read for it: their slices are cut from a shuffled order.
"""

import numpy as np

from vt_flax.data.source import Source
from vt_flax.errors import UserError, first_names


def check_splits(train: Source, evaluation: Source) -> list[str]:
    """Checks that what is trained on fits what is evaluated on.

    Args:
      train: the training split.
      evaluation: the evaluation split, with the same class names.

    Returns:
      Notes, a line each: classes that one of the splits lacks, and examples that are
      in both, or several times in one.

    Raises:
      UserError: if there are fewer than two classes to learn, or none of those that are
        learned is evaluated.
    """
    _check_classes(train, evaluation)
    notes = [
        _missing(train, evaluation, "the network cannot learn them"),
        _missing(evaluation, train, "the results say nothing of them"),
        repeated_examples(train),
        repeated_examples(evaluation),
        _common(train, evaluation),
    ]
    return [note for note in notes if note]


def missing_classes(source: Source) -> str:
    """Returns a note on the classes that a split has no images of; empty if none."""
    counts = source.class_counts()
    if counts is None or counts.all():
        return ""
    names = [source.class_names[i] for i in np.flatnonzero(counts == 0)]
    return (
        f"{source.name} has no images of {len(names):,} of the {len(counts):,} "
        f"classes: {first_names(names)}"
    )


def repeated_examples(source: Source) -> str:
    """Returns a note on examples that a split, such as `a+a[:5]`, has several times."""
    members = source.members()
    repeated = 0 if members is None else len(members) - len(np.unique(members))
    return f"{source.name} has {repeated:,} examples more than once" if repeated else ""


def _check_classes(train: Source, evaluation: Source) -> None:
    names = train.class_names
    if len(names) < 2:
        raise UserError(
            f"{train.name} has one class, {names[0]!r}: a classifier needs two or more"
        )
    learned, evaluated = train.class_counts(), evaluation.class_counts()
    if learned is None or evaluated is None:
        return
    (here,) = np.nonzero(learned)
    if len(here) < 2:
        raise UserError(
            f"{train.name}: all {len(train):,} images are of class {names[here[0]]!r}: "
            "a classifier needs images of two or more"
        )
    if not learned[evaluated > 0].any():
        strange = [names[i] for i in np.flatnonzero(evaluated)]
        raise UserError(
            f"{evaluation.name} has images of classes {first_names(strange)} alone, "
            f"and {train.name} has none of them: put images of each class into both, "
            "or slice one split, as in train[:80%] and train[80%:]"
        )


def _missing(source: Source, other: Source, consequence: str) -> str:
    """Returns a note on the classes that a split lacks and another has."""
    own, there = source.class_counts(), other.class_counts()
    if own is None or there is None or not there[own == 0].any():
        return missing_classes(source)
    names = source.class_names
    counts = [f"{there[i]:,} of {names[i]}" for i in np.flatnonzero(own == 0)]
    return (
        f"{source.name} has no images of {len(counts):,} of the {len(names):,} "
        f"classes; {other.name} has {first_names(counts)}: {consequence}"
    )


def _common(train: Source, evaluation: Source) -> str:
    """Returns a note on examples that are trained and evaluated on."""
    first, second = train.members(), evaluation.members()
    if first is None or second is None:
        return ""
    common = np.isin(second, first).sum()
    if not common:
        return ""
    return (
        f"{common:,} of the {len(second):,} examples of {evaluation.name} are also in "
        f"{train.name}: the results are not those on new examples"
    )
