"""Classes of the values in a folder's masks, and the notes on them."""

import numpy as np
import pytest
from pair_trees import assert_same, draw_image, draw_labels, stored, write
from PIL import Image

from vt_flax.cli import prepare_data
from vt_flax.data.prepare import build
from vt_flax.errors import UserError

COUNT = 3


class Folder:
    """A folder of images and masks of some values, and what is prepared of it."""

    def __init__(self, root, capfd):
        self.root, self._capfd = root, capfd
        self._pairs = {}

    @property
    def masks(self):
        """Masks by the bytes of their image."""
        return dict(self._pairs.values())

    def write(self, values, names="", split="", save=Image.fromarray):
        """Writes pairs of an image and a mask with all the values."""
        for i in range(COUNT):
            labels = draw_labels(i, 30, 20, values)
            name, picture = f"{split}/{i}", draw_image(10 * len(split) + i, 30, 20)
            image = write(self.root / f"images/{name}.jpg", picture)
            write(self.root / f"masks/{name}.png", save(labels))
            self._pairs[name] = image, labels
        if names:
            (self.root / "classes.txt").write_text("\n".join(names))
        return self

    def prepare(self, ignore_label="", data="data"):
        """Returns the builder and the notes."""
        self._capfd.readouterr()
        builder = build.prepare(
            "image_mask_folder",
            str(self.root / data),
            str(self.root),
            ignore_label=ignore_label,
        )
        lines = self._capfd.readouterr().err.splitlines()
        return builder, [line for line in lines if line.startswith("note: ")]

    def refused(self, ignore_label=""):
        """Returns the error; checks that it is one line and leaves no dataset."""
        with pytest.raises(UserError) as caught:
            self.prepare(ignore_label)
        assert "\n" not in str(caught.value)
        assert not list((self.root / "data").rglob("*1.0.0*"))
        return str(caught.value)

    def occurrences(self, value):
        """Returns how a value's pixels are printed, counted anew."""
        pixels = sum(int((mask == value).sum()) for mask in self.masks.values())
        return f"{value} ({pixels:,} pixels)"


@pytest.fixture
def folder(tmp_path, capfd):
    return Folder(tmp_path, capfd)


@pytest.mark.parametrize(
    "values, names, ignore_label, classes",
    [
        # Binary masks, and others whose values are no indices: the names in order.
        ([0, 255], "ab", "none", {0: 0, 255: 1}),
        ([0, 255], "", "none", {0: 0, 255: 1}),
        ([0, 128, 255], "abc", "none", {0: 0, 128: 1, 255: 2}),
        ([38, 75, 113], "abc", "none", {38: 0, 75: 1, 113: 2}),
        ([1, 2, 3], "abc", "none", {1: 0, 2: 1, 3: 2}),
        # Indices stay what they are.
        ([0, 1, 3], "abcd", "none", {0: 0, 1: 1, 3: 3}),
        ([0, 1, 2, 255], "abc", "", {0: 0, 1: 1, 2: 2, 255: 255}),
        ([0, 1, 2, 255], "", "", {0: 0, 1: 1, 2: 2, 255: 255}),
        ([0, 1, 2, 255], "abc", "255", {0: 0, 1: 1, 2: 2, 255: 255}),
        ([0, 255], "ab", "255", {0: 0, 255: 255}),
    ],
)
def test_classes_of_values(folder, values, names, ignore_label, classes):
    builder, _ = folder.write(values, names).prepare(ignore_label)
    expected = {
        image: np.select([mask == v for v in classes], [*classes.values()]).astype(int)
        for image, mask in folder.masks.items()
    }
    assert_same(
        stored("image_mask_folder", str(folder.root / "data"), "train"), expected
    )
    count = len(names) or len({*classes.values()} - {255})
    assert builder.info.metadata["class_names"] == (
        list(names) or [f"class {i}" for i in range(count)]
    )


@pytest.mark.parametrize(
    "values, names, none_of",
    [
        ([0, 255], "ab", ", and none of b:"),
        ([0, 255], "", ", and none of another class:"),
        ([255], "ab", ", and none of a, b:"),
        ([0, 1, 255], "abc", ", and none of c:"),
        ([1, 2, 255], "", ", and none of class 0:"),
        ([0, 128, 255], "abc", ", and none of b, c:"),
    ],
)
def test_the_meaning_of_255_is_asked_for(folder, values, names, none_of):
    message = folder.write(values, names).refused()
    counts = ", ".join(map(folder.occurrences, values))
    assert f"masks: the masks have {counts}{none_of} add --ignore_label none" in message
    assert "--ignore_label 255 if it means no label" in message


@pytest.mark.parametrize(
    "values, names, ignore_label, words",
    [
        ([1, 2, 3], "abc", "", "3 is none of the 3 classes, nor 255 for no label"),
        ([0, 1, 2, 255], "abc", "none", "255 is none of the 3 classes, nor"),
        ([0, 1, 2, 3], "abc", "", "name each class in classes.txt, the background"),
        ([0, 3, 255], "ab", "none", "3 is none of the 2 classes, nor"),
        ([1, 2, 3, 255], "abc", "255", "3 is none of the 3 classes, nor 255"),
        ([0, 254], "", "", "255 classes; 2 to 254 are possible"),
        ([0, 255], "", "255", "1 classes; 2 to 254 are possible"),
        ([0], "", "", "1 classes; 2 to 254 are possible"),
        ([255], "", "none", "1 classes; 2 to 254 are possible"),
    ],
)
def test_values_that_are_no_classes(folder, values, names, ignore_label, words, capfd):
    message = folder.write(values, names).refused(ignore_label)
    assert words in message
    counts = f"masks have {', '.join(map(folder.occurrences, values))}"
    assert counts in message + capfd.readouterr().err
    assert ("add --ignore_label none" in message) == ("is none of" in message)


def test_notes_name_the_values_and_the_classes_without_a_pixel(folder):
    folder.write([0, 128])
    _, (note,) = folder.prepare()
    counts = f"{folder.occurrences(0)}, {folder.occurrences(128)}"
    assert note == (
        f"note: train: 129 classes; the masks have {counts}, and no pixel of class 1, "
        "class 2, class 3, class 4, class 5 and 122 more"
    )


def test_notes_name_the_split_without_a_class(folder):
    folder.write([0, 1, 2, 255], "abc", split="train").write([0, 2], split="val")
    _, (train, val) = folder.prepare()
    assert train.startswith("note: train: 3 classes;") and "no pixel" not in train
    assert val.startswith("note: val: 3 classes;")
    assert val.endswith(", and no pixel of b")


def as_rgb(labels):
    return Image.merge("RGB", [Image.fromarray(labels)] * 3)


@pytest.mark.parametrize(
    "save",
    [
        as_rgb,
        lambda labels: as_rgb(labels).convert("RGBA"),
        lambda labels: Image.fromarray(labels).convert("LA"),
        lambda labels: Image.fromarray(labels.astype(np.uint16)),
        lambda labels: Image.fromarray(labels > 0),
    ],
    ids=["RGB", "RGBA", "LA", "16 bits", "1 bit"],
)
def test_gray_masks_of_other_modes_are_read_as_stored(folder, save):
    folder.write([0, 1], "ab", save=save).prepare()
    found = stored("image_mask_folder", str(folder.root / "data"), "train")
    assert_same(found, folder.masks)


def test_only_folders_of_masks_take_a_meaning_of_255(folder):
    with pytest.raises(UserError, match="--ignore_label none is for image_mask_folder"):
        build.prepare("digits", str(folder.root / "digits"), ignore_label="none")


def test_names_as_windows_writes_them(folder):
    folder.write([0, 1])
    (folder.root / "classes.txt").write_bytes(b"\xef\xbb\xbfa\r\nb \r\n\r\n")
    builder, _ = folder.prepare()
    assert builder.info.metadata["class_names"] == ["a", "b"]


def test_the_command_takes_relative_folders(folder, monkeypatch, capfd):
    folder.write([0, 255], "ab")
    monkeypatch.chdir(folder.root)
    words = ["image_mask_folder", "--manual_dir", ".", "--data_dir", "data"]
    prepare_data.main([*words, "--ignore_label", "none"])
    assert "train 3 examples, 2 classes" in capfd.readouterr().out
    (mask, *_) = stored(
        "image_mask_folder", str(folder.root / "data"), "train"
    ).values()
    assert np.unique(mask).tolist() == [0, 1]
