"""Checks training against evaluation split: classes and common examples."""

import numpy as np

from vt_flax.data.source import Source
from vt_flax.errors import UserError, first_names


def check_splits(train: Source, evaluation: Source) -> list[str]:
    """Returns notes on classes that a split lacks, and on examples that are in both.

    Both splits have the same class names.

    Raises:
      UserError: if there are fewer than two classes to learn, or none of those that are
        learned is evaluated.
    """
    names = train.class_names
    learned, evaluated = train.class_counts(), evaluation.class_counts()
    classes = len(names) if learned is None else np.count_nonzero(learned)
    if classes < 2:
        name = names[0 if learned is None else learned.argmax()]
        raise UserError(
            f"{train.name} has images of one class, {name!r}: a classifier needs two "
            "or more"
        )
    if learned is not None and evaluated is not None and not learned @ evaluated:
        others = [names[i] for i in np.flatnonzero(evaluated)]
        raise UserError(
            f"{evaluation.name} has images of classes {first_names(others)} alone, "
            f"and {train.name} has none of them: put images of each class into both, "
            "or slice one split, as in train[:80%] and train[80%:]"
        )
    notes = [*split_notes(train), *split_notes(evaluation)]
    common = np.isin(evaluation.members(), train.members()).sum()
    if common:
        notes.append(
            f"{common:,} of the {len(evaluation):,} examples of {evaluation.name} are "
            f"also in {train.name}: the results are not those on new examples"
        )
    return notes


def split_notes(source: Source) -> list[str]:
    """Returns a note if a split has no images of some classes."""
    counts = source.class_counts()
    if counts is None or counts.all():
        return []
    absent = [source.class_names[i] for i in np.flatnonzero(counts == 0)]
    return [
        f"{source.name} has no images of {len(absent):,} of the {len(counts):,} "
        f"classes: {first_names(absent)}"
    ]
