"""Checks training against evaluation split: classes and common examples."""

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
    names = train.class_names
    if len(names) < 2:
        raise UserError(
            f"{train.name} has one class, {names[0]!r}: a classifier needs two or more"
        )
    learned, evaluated = train.class_counts(), evaluation.class_counts()
    if learned is not None and np.count_nonzero(learned) < 2:
        raise UserError(
            f"{train.name}: all {len(train):,} images are of class "
            f"{names[learned.argmax()]!r}: a classifier needs images of two or more"
        )
    if learned is not None and evaluated is not None and not learned @ evaluated:
        others = [names[i] for i in np.flatnonzero(evaluated)]
        raise UserError(
            f"{evaluation.name} has images of classes {first_names(others)} alone, "
            f"and {train.name} has none of them: put images of each class into both, "
            "or slice one split, as in train[:80%] and train[80%:]"
        )
    first, second = train.members(), evaluation.members()
    notes = _notes(train, learned, first) + _notes(evaluation, evaluated, second)
    if first is not None and second is not None:
        common = np.isin(second, first).sum()
        if common:
            notes.append(
                f"{common:,} of the {len(second):,} examples of {evaluation.name} are "
                f"also in {train.name}: the results are not those on new examples"
            )
    return notes


def split_notes(source: Source) -> list[str]:
    """Returns notes on classes without images and repeated examples in one split."""
    return _notes(source, source.class_counts(), source.members())


def _notes(
    source: Source, counts: np.ndarray | None, members: np.ndarray | None
) -> list[str]:
    notes = []
    if counts is not None and not counts.all():
        absent = [source.class_names[i] for i in np.flatnonzero(counts == 0)]
        notes.append(
            f"{source.name} has no images of {len(absent):,} of the {len(counts):,} "
            f"classes: {first_names(absent)}"
        )
    repeated = 0 if members is None else len(members) - len(np.unique(members))
    if repeated:  # as in `a+a[:5]`
        notes.append(f"{source.name} has {repeated:,} examples more than once")
    return notes
