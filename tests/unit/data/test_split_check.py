"""Notes before a run on missing classes and on examples that both splits share."""

import pathlib

import numpy as np
import pytest
from test_folder_layouts import make

from vt_flax.data.sources import open_source
from vt_flax.data.split_check import check_splits, split_notes
from vt_flax.errors import UserError


@pytest.fixture
def photos(tmp_path):
    """Splits of 8 a, 4 b, 1 c; of 3 a, 3 b, no c; of c alone, and of a alone."""
    counts = {"train": (8, 4, 1), "val": (3, 3, 0), "odd": (0, 0, 2), "one": (5, 0, 0)}
    for split, numbers in counts.items():
        for name, count in zip("abc", numbers, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            make(tmp_path, *(f"{split}/{name}/{i}.jpg" for i in range(count)))
    return f"folder:{tmp_path}"


def check(name, train, evaluation, data_dir=""):
    return check_splits(
        open_source(name, train, data_dir), open_source(name, evaluation, data_dir)
    )


def test_splits_that_fit(photos):
    train, evaluation = "train+odd[:1]", "one+odd[1:]+val"
    assert check(photos, train, evaluation) == []


def test_classes_that_a_split_lacks(photos):
    note = f"{photos} val has no images of 1 of the 3 classes: c"
    assert check(photos, "train", "val") == check(photos, "val", "train") == [note]
    halves = check(photos, "val[:50%]", "val[50%:]")
    assert [half.partition(" has ")[2] for half in halves] == [
        "no images of 1 of the 3 classes: c"
    ] * 2
    alone = split_notes(open_source(photos, "one"))
    assert alone == [f"{photos} one has no images of 2 of the 3 classes: b, c"]


@pytest.mark.parametrize(
    "train, evaluation, message",
    [
        (
            "one",
            "val",
            "one has images of one class, 'a': a classifier needs two or more",
        ),
        (
            "val",
            "odd",
            "odd has images of classes c alone, and .* val has none of them",
        ),
    ],
)
def test_splits_that_do_not_fit(photos, train, evaluation, message):
    with pytest.raises(UserError, match=message):
        check(photos, train, evaluation)


def test_one_class(tmp_path):
    make(tmp_path, *(f"train/cat/{i}.jpg" for i in range(4)))
    with pytest.raises(UserError, match=r"train\[:2\] has images of one class, 'cat'"):
        check(f"folder:{tmp_path}", "train[:2]", "train[2:]")


@pytest.mark.parametrize("name", ["folder", "digits"])
def test_examples_of_both_splits_are_counted(name, photos, digits):
    name, data_dir = (photos, "") if name == "folder" else (name, digits)
    whole = len(open_source(name, "train", data_dir))
    if name == photos:
        assert whole == 13
    common = round(0.8 * whole) - round(0.7 * whole)
    (note,) = [
        note
        for note in check(name, "train[:80%]", "train[70%:]", data_dir)
        if "also in" in note
    ]
    total = whole - round(0.7 * whole)
    what = f"{common} of the {total} examples of {name} train[70%:] are also in {name}"
    assert note.startswith(f"{what} train[:80%]: ")
    # Not by their places in either split.
    source = open_source(name, "train[5:]+train[:5]", data_dir)
    order = np.r_[5:whole, :5]
    members = open_source(name, "train", data_dir).members()
    np.testing.assert_array_equal(source.members(), members[order])


def test_images_of_linked_folders_are_the_same(photos):
    folder = pathlib.Path(photos.removeprefix("folder:"))
    (folder / "linked").symlink_to("train")
    (note,) = check(photos, "train", "linked")
    assert note.startswith(f"13 of the 13 examples of {photos} linked are also in ")
