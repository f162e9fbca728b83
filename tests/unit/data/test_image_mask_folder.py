"""Folders of images and masks: classes of their values, and what is refused."""

import re

import numpy as np
import pytest
from image_files import with_orientation
from pair_trees import (
    assert_same,
    draw_image,
    draw_labels,
    stored,
    with_palette,
    write,
)
from PIL import Image

from vt_flax.cli import prepare_data
from vt_flax.data.masks import decode_mask
from vt_flax.data.prepare import build
from vt_flax.errors import UserError

COUNT = 3
LABELS = draw_labels(0, 30, 20, [0, 1, 2])


class Folder:
    """A folder of images and masks of some values, and what is prepared of it."""

    def __init__(self, root, capfd):
        self.root, self._capfd = root, capfd
        # Masks by the bytes of their image.
        self.masks = {}

    def write(self, values=(0, 1, 2), names="", split="", save=Image.fromarray):
        """Writes pairs of an image and a mask with all the values."""
        for i in range(COUNT):
            labels = draw_labels(i, 30, 20, values)
            name, picture = f"{split}/{i}", draw_image(10 * len(split) + i, 30, 20)
            image = write(self.root / f"images/{name}.jpg", picture)
            write(self.root / f"masks/{name}.png", save(labels))
            self.masks[image] = labels
        if names:
            (self.root / "classes.txt").write_text("\n".join(names))
        return self

    def prepare(self, ignore_label=""):
        """Returns the builder and the notes."""
        self._capfd.readouterr()
        builder = build.prepare(
            "image_mask_folder",
            str(self.root / "data"),
            str(self.root),
            ignore_label=ignore_label,
        )
        lines = self._capfd.readouterr().err.splitlines()
        return builder, [line for line in lines if line.startswith("note: ")]

    def stored(self):
        return stored("image_mask_folder", str(self.root / "data"), "train")

    def refused(self, ignore_label=""):
        """Returns the error; checks that it is one line and leaves no dataset."""
        with pytest.raises(UserError) as caught:
            self.prepare(ignore_label)
        message = str(caught.value)
        assert "\n" not in message and "BytesIO" not in message
        assert not list((self.root / "data").rglob("*1.0.0*"))
        return message

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
        ([0, 128, 255], "", "none", {0: 0, 128: 1, 255: 2}),
        ([1, 2, 3], "abc", "none", {1: 0, 2: 1, 3: 2}),
        # Indices stay what they are.
        ([0, 1, 3], "abcd", "none", {0: 0, 1: 1, 3: 3}),
        ([0, 1, 2, 255], "abc", "", {0: 0, 1: 1, 2: 2, 255: 255}),
        ([0, 255], "ab", "255", {0: 0, 255: 255}),
    ],
)
def test_classes_of_values(folder, values, names, ignore_label, classes):
    builder, _ = folder.write(values, names).prepare(ignore_label)
    expected = {
        image: np.select([mask == v for v in classes], [*classes.values()]).astype(int)
        for image, mask in folder.masks.items()
    }
    assert_same(folder.stored(), expected)
    count = len(names) or len({*classes.values()} - {255})
    assert builder.info.metadata["class_names"] == (
        list(names) or [f"class {i}" for i in range(count)]
    )


@pytest.mark.parametrize(
    "values, names, none_of",
    [
        ([0, 255], "ab", ", and none of b:"),
        ([0, 255], "", ", and none of another class:"),
        ([0, 1, 255], "abc", ", and none of c:"),
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
        ([0, 254], "", "", "255 classes; 2 to 254 are possible"),
        ([0, 255], "", "255", "1 classes; 2 to 254 are possible"),
    ],
)
def test_values_that_are_no_classes(folder, values, names, ignore_label, words):
    message = folder.write(values, names).refused(ignore_label)
    assert words in message
    assert ("add --ignore_label none" in message) == ("is none of" in message)


def test_notes_name_the_values_and_the_classes_without_a_pixel(folder):
    folder.write([0, 1, 2, 255], "abc", split="train").write([0, 2], split="val")
    _, (train, val) = folder.prepare()
    assert train.startswith("note: train: 3 classes;") and "no pixel" not in train
    assert val.startswith("note: val: 3 classes;")
    assert val.endswith(", and no pixel of b")


def test_gray_masks_of_other_modes_are_read_as_stored(folder):
    def as_rgb(labels):
        return Image.merge("RGB", [Image.fromarray(labels)] * 3)

    saves = [
        as_rgb,
        lambda labels: as_rgb(labels).convert("RGBA"),
        lambda labels: Image.fromarray(labels).convert("LA"),
        lambda labels: Image.fromarray(labels.astype(np.uint16)),
        lambda labels: Image.fromarray(labels > 0),
    ]
    folder.write([0, 1], "ab")
    for i, save in enumerate(saves):
        image = write(folder.root / f"images/{10 + i}.jpg", draw_image(50 + i, 30, 20))
        folder.masks[image] = draw_labels(i, 30, 20, [0, 1])
        write(folder.root / f"masks/{10 + i}.png", save(folder.masks[image]))
    folder.prepare()
    assert_same(folder.stored(), folder.masks)


def test_the_command_takes_relative_folders(folder, monkeypatch, capfd):
    folder.write([0, 255])
    # As Windows writes them.
    (folder.root / "classes.txt").write_bytes(b"\xef\xbb\xbfa\r\nb \r\n\r\n")
    monkeypatch.chdir(folder.root)
    words = ["image_mask_folder", "--manual_dir", ".", "--data_dir", "data"]
    prepare_data.main([*words, "--ignore_label", "none"])
    assert "train 3 examples, 2 classes" in capfd.readouterr().out
    (mask, *_) = folder.stored().values()
    assert np.unique(mask).tolist() == [0, 1]
    with pytest.raises(UserError, match="--ignore_label none is for image_mask_folder"):
        build.prepare("digits", str(folder.root / "digits"), ignore_label="none")


# What does not fit.


def test_after_a_refusal_the_dataset_is_built(folder):
    folder.write()
    (folder.root / "masks" / "2.png").rename(folder.root / "kept.png")
    assert "without a mask: 2.jpg" in folder.refused()
    (folder.root / "kept.png").rename(folder.root / "masks" / "2.png")
    builder, _ = folder.prepare()
    assert builder.info.splits["train"].num_examples == COUNT


def test_different_sizes(folder):
    write(folder.write().root / "masks" / "1.png", LABELS[:-1])
    message = folder.refused()
    assert re.search(r"/1.png has 30 x 19 pixels, its image .*1.jpg 30 x 20", message)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_file_that_is_not_upright(folder, kind):
    """Even if both are square, so that the sizes agree."""
    root = folder.write().root
    content = draw_image(0, 20, 20), LABELS[:, :20]
    for name, image in zip(("images/1.jpg", "masks/1.png"), content, strict=True):
        options = with_orientation(6) if name.startswith(kind) else {}
        write(root / name, np.ascontiguousarray(image), **options)
    message = folder.refused()
    assert re.search(rf"{kind}/1.(jpg|png): its EXIF orientation is 6", message)


@pytest.mark.parametrize(
    "image, words",
    [
        (with_palette(LABELS), "palette, 8 bits"),
        (
            Image.merge(
                "RGB", [Image.fromarray(x) for x in (LABELS, LABELS, 9 * LABELS)]
            ),
            "has colors or transparency",
        ),
        (
            Image.merge("LA", [Image.fromarray(x) for x in (LABELS, 255 - LABELS)]),
            "has colors or transparency",
        ),
        (
            Image.fromarray(LABELS.astype(np.uint16) * 13000),
            "values up to 26,000: if they are ids",
        ),
    ],
)
def test_the_mode_of_a_mask(folder, image, words):
    write(folder.write().root / "masks" / "1.png", image)
    message = folder.refused()
    assert "masks/1.png: a mask must be a" in message and words in message


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_palettes_of_any_depth_are_indices(tmp_path, bits):
    content = write(tmp_path / "a.png", with_palette(LABELS), bits=bits)
    assert content[24] == bits
    np.testing.assert_array_equal(decode_mask(content, palettes=True), LABELS)


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("images/2.jpg", lambda b: b"", "2.jpg: not a readable image"),
        ("images/2.jpg", lambda b: b[:-40], "2.jpg: not a readable .*trunc"),
        ("masks/2.png", lambda b: b[:20], "2.png: a mask must be a PNG.*is cut off"),
        ("masks/2.png", lambda b: b[:-30], "2.png: not a readable PNG .*trunc"),
    ],
)
def test_damaged_files(folder, name, damage, words):
    file = folder.write().root / name
    file.write_bytes(damage(file.read_bytes()))
    assert re.search(words, folder.refused())


@pytest.mark.parametrize(
    "files, words",
    [
        ("images/0.png", "have one name"),
        ("images/val/9.jpg masks/val/9.png", "has both images and folders"),
        ("masks/9.png", "without an image: 9.png"),
    ],
)
def test_pairs_that_cannot_be_told(folder, files, words):
    folder.write()
    for name in files.split():
        write(folder.root / name, LABELS)
    assert words in folder.refused()


@pytest.mark.parametrize(
    "text, words",
    [
        (b"a\n\nb\nc", "classes.txt: a name is empty"),
        (b"a\nb\na", "classes.txt: a name is empty or there twice"),
        (b"a", "1 classes; 2 to 254 are possible"),
        (b"\xff\xfe\x00\x81", "classes.txt: cannot be read as text"),
    ],
)
def test_bad_lists_of_classes(folder, text, words):
    (folder.write().root / "classes.txt").write_bytes(text)
    assert words in folder.refused()


@pytest.mark.parametrize(
    "name, words",
    [
        ("image_mask_folder", "images is not there; wanted is: images/SPLIT/NAME.jpg"),
        ("lip", "train_images is not there; wanted is: what TrainVal_images.zip"),
        ("ade20k", "training is not there; wanted is: the folder ADE"),
        ("coco_stuff", "train2017 is not there; wanted is: train2017"),
    ],
)
def test_a_folder_of_something_else(tmp_path, name, words):
    (tmp_path / "manual" / "holidays").mkdir(parents=True)
    with pytest.raises(UserError, match=words):
        build.prepare(name, str(tmp_path / "data"), str(tmp_path / "manual"))
    with pytest.raises(UserError, match="nowhere does not exist or is empty"):
        build.prepare(name, str(tmp_path / "data"), str(tmp_path / "nowhere"))
