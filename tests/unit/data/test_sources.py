"""Class folders, the embedded digits, and TFDS datasets, with their error messages."""

import collections
import io
import os
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vt_flax.data.images import decode_with_pillow as decode
from vt_flax.data.sources import open_source
from vt_flax.errors import UserError


def add_images(folder, count, first=0):
    """Writes images whose red and green name them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        colour = (i % 256, i // 256, 0)
        Image.new("RGB", (2, 2), colour).save(folder / f"{i:04}.png")


def numbers(source):
    """Returns what identifies each image of a source, in the source's order."""
    examples = source.read(range(len(source)))
    pixels = [decode(example.image).getpixel((0, 0)) for example in examples]
    return [red + 256 * green for red, green, _ in pixels]


def labels(source):
    return [example.label for example in source.read(range(len(source)))]


@pytest.fixture
def flat(tmp_path):
    """33 images: 0 to 9 of class ant, 10 to 21 of bee, 22 to 32 of cow."""
    add_images(tmp_path / "cow", 11, 22)
    add_images(tmp_path / "ant", 10)
    add_images(tmp_path / "bee", 12, 10)
    return tmp_path


# Class folders.


def test_flat_folders(flat):
    source = open_source(f"folder:{flat}", "all")
    assert source.class_names == ("ant", "bee", "cow")
    assert len(source) == 33
    assert sorted(numbers(source)) == list(range(33))
    for number, label in zip(numbers(source), labels(source), strict=True):
        assert label == (number >= 10) + (number >= 22)


@pytest.mark.parametrize("bound", ["80%", "50%", "7", "1%"])
def test_slices_part_a_flat_folder(flat, bound):
    name = f"folder:{flat}"
    whole = numbers(open_source(name, "all"))
    if bound == "1%":  # 0.33 of an image
        with pytest.raises(UserError, match=r"'all\[:1%\]' .* is empty"):
            open_source(name, f"all[:{bound}]")
        assert numbers(open_source(name, f"all[{bound}:]")) == whole
        return
    first = numbers(open_source(name, f"all[:{bound}]"))
    second = numbers(open_source(name, f"all[{bound}:]"))
    assert len(first) == {"80%": 26, "50%": 16, "7": 7}[bound]
    assert not set(first) & set(second)
    assert first + second == whole


def test_few_bits_in_16_are_noted(tmp_path):
    """One image that is bright enough shows that white is 65,535."""
    add_images(tmp_path / "ant", 2)
    add_images(tmp_path / "bee", 2)
    levels = np.linspace(0, 4095, 24).astype(np.uint16).reshape(4, 6)
    for name, times in (("a.png", 1), ("b.tif", 1), ("c.tif", 16)):
        Image.fromarray(levels * times).save(tmp_path / "ant" / name)
        notes = open_source(f"folder:{tmp_path}", "all").notes
        if times == 1:
            (note,) = notes
            assert f"{tmp_path}/ant/a.png" in note
            assert "no level is above 4,095" in note
    assert notes == ()


def test_levels_of_32_bits_are_noted(tmp_path):
    add_images(tmp_path / "ant", 2)
    add_images(tmp_path / "bee", 2)
    levels = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    Image.fromarray(levels).save(tmp_path / "bee" / "a.tif")
    (note,) = open_source(f"folder:{tmp_path}", "all").notes
    assert "bee/a.tif: 32 bits converted to 8: 0 is black, 1 is white" in note


def test_a_folder_that_may_not_be_read(flat, monkeypatch):
    scan = os.scandir

    def refuse(folder):  # no permission keeps out root
        if str(folder).endswith("ant"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"^{flat / 'ant'}: Permission denied"):
        open_source(f"folder:{flat}", "all")


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: there is no such folder"):
        open_source(f"folder:{tmp_path}/nowhere", "all")


@pytest.mark.parametrize("text", ["", "all[", "all[:5%]x", "all+", "all[:5]all"])
def test_what_is_no_split(flat, text):
    with pytest.raises(UserError, match=re.escape(f"split {text!r}: write a name")):
        open_source(f"folder:{flat}", text)


@pytest.mark.parametrize(
    "text", [":x", ":180%", ":34", "-34:", "3", "9:3", "", ":1shard", "1:2:3", "1.5:3"]
)
def test_a_bad_slice(flat, text):
    match = re.escape(f"[{text}] is no slice of 33 images")
    with pytest.raises(UserError, match=match):
        open_source(f"folder:{flat}", f"all[{text}]+all")


def test_an_empty_slice(flat):
    with pytest.raises(UserError, match=r"'all\[33:\]' .* is empty"):
        open_source(f"folder:{flat}", "all[33:]")


# The embedded digits.


def bilinear(small, side):
    """Half-pixel bilinear interpolation of (n, h, w) to (n, side, side), float64."""
    for axis in (1, 2):
        size = small.shape[axis]
        place = (np.arange(side) + 0.5) * size / side - 0.5
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(3)])
        below = np.take(small, np.clip(low, 0, size - 1), axis)
        above = np.take(small, np.clip(low + 1, 0, size - 1), axis)
        small = below * (1 - share) + above * share
    return small


@pytest.mark.parametrize("name,first,last", [("train", 0, 1437), ("test", 1437, 1797)])
def test_digits_are_scikit_learns(digits, name, first, last):
    """TFDS shuffles, so each stored image is matched to the nearest one expected."""
    source = open_source("digits", name, digits)
    assert len(source) == last - first
    assert source.class_names == tuple("0123456789")
    examples = source.read(range(len(source)))
    stored = np.stack([np.asarray(decode(example.image)) for example in examples])
    assert stored.shape[1:] == (32, 32, 3) and stored.dtype == np.uint8
    assert (stored == stored[..., :1]).all()
    ours = stored[..., 0].astype(np.float64)

    data = load_digits()
    theirs = bilinear(np.rint(data.images[first:last] * 255 / 16), 32)
    a, b = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
    distance = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    match = distance.argmin(1)
    assert sorted(match) == list(range(last - first))
    assert np.abs(ours - theirs[match]).max() <= 1
    found = [example.label for example in examples]
    np.testing.assert_array_equal(found, data.target[first:last][match])


def test_slices_of_digits(digits):
    whole = open_source("digits", "test", digits)
    first = open_source("digits", "test[:90%]", digits)
    second = open_source("digits", "test[90%:]", digits)
    assert (len(first), len(second)) == (324, 36)
    assert labels(first) + labels(second) == labels(whole)


def test_indices_of_digits_may_come_in_any_order(digits):
    source = open_source("digits", "test", digits)
    whole = source.read(range(20))
    some = source.read([7, 0, 7])
    assert [e.image for e in some] == [whole[i].image for i in (7, 0, 7)]


@pytest.mark.parametrize(
    "split, parts",
    [
        ("train+test", ["train", "test"]),
        ("train[:10%] + train[90%:]", ["train[:10%]", "train[90%:]"]),
        ("test[10:20]+test[-5:]", ["test[10:20]", "test[-5:]"]),
        ("test[:0]+test[:12.5%]", ["test[:12.5%]"]),
        ("all", ["train", "test"]),
    ],
)
def test_sums_of_splits_of_digits(digits, split, parts):
    """Each in its order, by random access."""
    whole = open_source("digits", split, digits)
    some = [open_source("digits", part, digits) for part in parts]
    expected = [one for part in some for one in part.read(range(len(part)))]
    assert whole.read(range(len(whole))) == expected
    members = np.concatenate([part.members() for part in some])
    np.testing.assert_array_equal(whole.members(), members)
    assert len(np.unique(members)) == len(members)


def test_digits_have_two_splits(digits):
    """TFDS's own error names them."""
    for split in ("train+tset[:5]", "tset"):
        with pytest.raises(
            UserError, match="split .* 'digits': .*'tset'.*'train', 'test'"
        ):
            open_source("digits", split, digits)


# Datasets of TFDS.


@pytest.mark.parametrize(
    "name, hint",
    [
        ("cifar11", "is not known.*did you mean.*cifar1"),
        ("qqqqqqqq", "is not known.*folder:PATH"),
        ("mnist:99.0.0", ""),
    ],
)
def test_an_unknown_dataset(tmp_path, name, hint):
    with pytest.raises(UserError, match=f"'{name}'.*{hint}"):
        open_source(name, "train", str(tmp_path))


@pytest.mark.parametrize("name", ["/no/flowers", "gs://b/c", "~/x y", "flowers"])
def test_a_path_is_no_dataset_but_maybe_class_folders(tmp_path, monkeypatch, name):
    (tmp_path / "flowers").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"is not known.*; for .* write folder:{name}$"):
        open_source(name, "train")


def test_a_dataset_that_is_not_prepared(tmp_path):
    with pytest.raises(UserError) as caught:
        open_source("mnist", "train", str(tmp_path))
    message = str(caught.value)
    assert "'mnist' is not prepared" in message
    assert "vt_flax prepare_data mnist --data_dir" in message
    assert f"--data_dir {tmp_path}" in message


@pytest.mark.parametrize(
    "name",
    [
        *(
            "test[",
            "test[:x]",
            "test[:0]",
            "test[:300%]",
            "test[:361]",
            "test[80%:20%]",
        ),
        *("train+test[5:2]", "all[:50%]", "test[7]", "test+"),
    ],
)
def test_a_bad_slice_of_a_dataset(digits, name):
    with pytest.raises(UserError, match=re.escape(name)):
        open_source("digits", name, digits)


def test_a_dataset_of_segmentation_is_refused(real_data):
    with pytest.raises(UserError, match="'camvid' has no ClassLabel feature 'label'"):
        open_source("camvid", "train", str(real_data))


def test_cifar10(real_data):
    train = open_source("cifar10_jpeg", "train", str(real_data))
    test = open_source("cifar10_jpeg", "test", str(real_data))
    assert (len(train), len(test)) == (50000, 10000)
    assert len(train.class_names) == 10
    assert train.class_names == test.class_names
    places = np.random.default_rng(0).integers(0, 10000, 200)
    for source in (train, test):
        examples = source.read(places.tolist())
        pictures = [np.asarray(decode(example.image)) for example in examples]
        assert {picture.shape for picture in pictures} == {(32, 32, 3)}
        assert len({picture.tobytes() for picture in pictures}) > 150
        # CIFAR-10 has as many images of each class.
        counts = collections.Counter(example.label for example in examples)
        assert set(counts) == set(range(10)) and max(counts.values()) < 50
        assert Image.open(io.BytesIO(examples[0].image)).format == "JPEG"


def test_class_folders_of_photographs(real_data):
    source = open_source(f"folder:{real_data / 'imagenet_samples'}", "all[:3%]")
    assert len(source) == 9 and len(source.class_names) == 300
    for i, example in enumerate(source.read(range(9))):
        assert source.class_names[example.label] in source.describe(i)
        assert min(decode(example.image).size) > 50
