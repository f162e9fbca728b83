"""Images and masks that do not fit: one line that names the file, nothing left."""

import pathlib
import re
import struct
import zlib

import numpy as np
import pytest
from image_files import with_orientation
from pair_trees import draw_image, draw_labels, make_lip, with_palette, write
from PIL import Image
from test_prepare_pairs import make_ade20k

from vt_flax.data.masks import decode_mask
from vt_flax.data.prepare import build
from vt_flax.errors import UserError

LABELS = draw_labels(0, 30, 20, [0, 1, 2])


@pytest.fixture
def tree(tmp_path) -> pathlib.Path:
    """A folder of five good pairs of one split."""
    for i in range(5):
        write(tmp_path / "manual" / "images" / f"{i}.jpg", draw_image(i, 30, 20))
        write(tmp_path / "manual" / "masks" / f"{i}.png", LABELS)
    return tmp_path / "manual"


def refused(name: str, manual: pathlib.Path) -> str:
    """Returns what is said; checks that it is one line and leaves nothing behind."""
    data = manual.parent / "data"
    with pytest.raises(UserError) as caught:
        build.prepare(name, str(data), str(manual))
    assert "\n" not in str(caught.value)
    assert not [entry for entry in data.rglob("*") if entry.match("*1.0.0*")]
    return str(caught.value)


def test_after_a_refusal_it_is_mended_and_built(tree):
    (tree / "masks" / "2.png").rename(tree / "kept.png")
    refused("image_mask_folder", tree)
    (tree / "kept.png").rename(tree / "masks" / "2.png")
    builder = build.prepare("image_mask_folder", str(tree.parent / "data"), str(tree))
    assert builder.info.splits["train"].num_examples == 5


def test_different_sizes(tree):
    write(tree / "masks" / "3.png", LABELS[:-1])
    message = refused("image_mask_folder", tree)
    assert re.search(r"/3.png has 30 x 19 pixels, its image .*3.jpg 30 x 20", message)


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("orientation", [2, 6])
def test_a_file_that_is_not_upright(tree, kind, orientation):
    """Even if both are square, or it is only mirrored, so that the sizes agree."""
    content = draw_image(0, 20, 20), LABELS[:, :20]
    for name, image in zip(("images/3.jpg", "masks/3.png"), content, strict=True):
        options = with_orientation(orientation) if name.startswith(kind) else {}
        write(tree / name, np.ascontiguousarray(image), **options)
    message = refused("image_mask_folder", tree)
    assert re.search(
        rf"{kind}/3.(jpg|png): its EXIF orientation is {orientation}", message
    )


@pytest.mark.parametrize("value", [4, 254])
def test_a_label_beyond_the_classes(tree, value):
    (tree / "classes.txt").write_text("a\nb\nc\nd")
    write(tree / "masks" / "4.png", np.where(LABELS == 2, value, LABELS))
    message = refused("image_mask_folder", tree)
    assert f"masks/4.png: value {value} is none of the 4 classes, nor 255" in message


def test_a_label_beyond_all_classes(tree):
    write(tree / "masks" / "4.png", np.where(LABELS == 2, 254, LABELS))
    message = refused("image_mask_folder", tree)
    assert "masks: 255 classes; 2 to 254 are possible" in message


@pytest.mark.parametrize(
    "folder, other, what", [("images", "masks", "image"), ("masks", "images", "mask")]
)
def test_a_half_pair(tree, folder, other, what):
    for i in (1, 3):
        next((tree / folder).glob(f"{i}.*")).unlink()
    message = refused("image_mask_folder", tree)
    suffix = {"images": ".jpg", "masks": ".png"}[other]
    words = f"without {'an' if what == 'image' else 'a'} {what}: 1{suffix}, 3{suffix}"
    assert f"{other} " in message and words in message


# Modes.


BRIGHT = Image.fromarray(np.where(LABELS == 2, 128, LABELS))
CLEAR = Image.fromarray(np.where(LABELS == 2, 254, 255).astype(np.uint8))
IDS = np.where(LABELS == 2, np.uint16(26003), LABELS)


@pytest.mark.parametrize(
    "image, options, words",
    [
        (with_palette(LABELS), {}, "palette, 8 bits: give each color"),
        (
            Image.merge("RGB", [Image.fromarray(LABELS)] * 2 + [BRIGHT]),
            {},
            "has colors or transparency: give each color",
        ),
        (
            Image.merge("LA", [Image.fromarray(LABELS), CLEAR]),
            {},
            "has colors or transparency",
        ),
        (
            Image.merge("RGBA", [*[Image.fromarray(LABELS)] * 3, CLEAR]),
            {},
            "has colors or transparency",
        ),
        (Image.fromarray(IDS), {}, "values up to 26,003: if they are ids"),
        (Image.fromarray(LABELS), {"format": "JPEG"}, "must be a PNG"),
    ],
)
def test_the_mode_of_a_mask(tree, image, options, words):
    write(tree / "masks" / "1.png", image, **options)
    message = refused("image_mask_folder", tree)
    assert "masks/1.png: a mask must be a" in message and words in message


@pytest.mark.parametrize("bits", [2, 4])
def test_a_gray_mask_of_few_bits_is_not_misread(tmp_path, bits):
    # Pillow writes none: a palette one, made gray by its header's color type.
    path = tmp_path / "a.png"
    content = bytearray(write(path, with_palette(LABELS), bits=bits))
    assert content[24:26] == bytes((bits, 3))
    content[25] = 0
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    # Pillow scales 2 of 3 to 170 of 255, 2 of 15 to 34.
    assert np.asarray(Image.open(path)).max() == {2: 170, 4: 34}[bits]
    with pytest.raises(ValueError, match=f"is gray, {bits} bits"):
        decode_mask(bytes(content))
    np.testing.assert_array_equal(decode_mask(bytes(content), any_gray=True), LABELS)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_palettes_of_any_depth_are_indices(tmp_path, bits):
    content = write(tmp_path / "a.png", with_palette(LABELS), bits=bits)
    assert content[24] == bits
    np.testing.assert_array_equal(decode_mask(content, palettes=True), LABELS)


def test_lip_refuses_other_modes_and_labels(tmp_path):
    manual = tmp_path / "manual"
    make_lip(manual)
    path = manual / "TrainVal_parsing_annotations" / "val_segmentations" / "1_1001.png"
    good = np.asarray(Image.open(path))
    write(path, Image.open(path).convert("RGB"))
    assert "1_1001.png: a mask must be a gray PNG" in refused("lip", manual)
    write(path, with_palette(np.where(good == 19, 20, good)))
    assert "1_1001.png: value 20 is none of the 20 classes" in refused("lip", manual)


def test_ade20k_refuses_a_label_beyond_150(tmp_path):
    manual = tmp_path / "manual"
    make_ade20k(manual)
    folder = manual / "ADEChallengeData2016" / "annotations" / "training"
    path = folder / "ADE_train_00000003.png"
    values = np.array(Image.open(path))
    values[0, 0] = 151
    write(path, values)
    assert "3.png: value 151 is none of the 150 classes" in refused("ade20k", manual)


# Files that cannot be read.


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("images/2.jpg", lambda b: b"", "2.jpg: not a readable image"),
        (
            "images/2.jpg",
            lambda b: b[:-40],
            "2.jpg: not a readable .*trunc",
        ),
        (
            "images/2.jpg",
            lambda b: b"<html>" * 9,
            "2.jpg: not a readable image .can",
        ),
        ("masks/2.png", lambda b: b"", "2.png: a mask must be a PNG.*is empty"),
        ("masks/2.png", lambda b: b[:20], "2.png: a mask must be a PNG.*is cut off"),
        (
            "masks/2.png",
            lambda b: b[:-30],
            "2.png: not a readable PNG .*trunc",
        ),
        ("masks/2.png", lambda b: b[:60] + b[80:], "2.png: not a readable PNG"),
        ("masks/2.png", lambda b: b"GIF89a" + b, "2.png: a mask must be a PNG"),
    ],
)
def test_damaged_files(tree, name, damage, words):
    content = (tree / name).read_bytes()
    (tree / name).write_bytes(damage(content))
    message = refused("image_mask_folder", tree)
    assert re.search(words, message) and "BytesIO" not in message


# Layout.


def test_two_images_of_a_name(tree):
    write(tree / "images" / "2.png", draw_image(0, 30, 20))
    message = refused("image_mask_folder", tree)
    assert re.search(r"2\.png and 2\.jpg have one name|2\.jpg and 2\.png", message)


def test_images_beside_split_folders(tree):
    write(tree / "images" / "val" / "9.jpg", draw_image(0, 30, 20))
    write(tree / "masks" / "val" / "9.png", LABELS)
    assert "has both images and folders" in refused("image_mask_folder", tree)


def test_masks_of_a_split_without_images(tree):
    for name in ("images", "masks"):
        (tree / name).rename(tree / "train")
        (tree / name).mkdir()
        (tree / "train").rename(tree / name / "train")
    write(tree / "masks" / "val" / "9.png", LABELS)
    assert "without an image: val/9.png" in refused("image_mask_folder", tree)


def test_empty_folders(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "manual" / name).mkdir(parents=True)
    assert "0 images in" in refused("image_mask_folder", tmp_path / "manual")


@pytest.mark.parametrize("name", ["my split", "train[1]", "a-b"])
def test_names_that_no_split_may_have(tmp_path, name):
    write(tmp_path / "manual" / "images" / name / "9.jpg", draw_image(0, 30, 20))
    write(tmp_path / "manual" / "masks" / name / "9.png", LABELS)
    message = refused("image_mask_folder", tmp_path / "manual")
    assert f"images/{name}: a split cannot have this name" in message


def test_no_split_is_called_all(tmp_path):
    write(tmp_path / "manual" / "images" / "all" / "9.jpg", draw_image(0, 30, 20))
    write(tmp_path / "manual" / "masks" / "all" / "9.png", LABELS)
    assert "`all` is a reserved keyword" in refused(
        "image_mask_folder", tmp_path / "manual"
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("a\n\nb\nc", "classes.txt: a name is empty"),
        ("a\nb\na", "classes.txt: a name is empty or there twice"),
        ("a", "1 classes; 2 to 254 are possible"),
        ("", "classes.txt: a name is empty"),
        ("\n".join(map(str, range(255))), "255 classes; 2 to 254 are possible"),
    ],
)
def test_bad_lists_of_classes(tree, text, words):
    (tree / "classes.txt").write_text(text)
    assert words in refused("image_mask_folder", tree)


def test_a_list_of_classes_that_is_no_text(tree):
    (tree / "classes.txt").write_bytes(b"\xff\xfe\x00\x81")
    assert "classes.txt: cannot be read as text" in refused("image_mask_folder", tree)


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
    assert words in refused(name, tmp_path / "manual")


@pytest.mark.parametrize("name", ["image_mask_folder", "coco_stuff"])
def test_no_folder_or_an_empty_one(tmp_path, name):
    (tmp_path / "empty").mkdir()
    last = {"image_mask_folder": "where there is no label", "coco_stuff": "from there"}
    for manual in ("nowhere", "", "empty"):
        found = tmp_path / manual if manual else "data/downloads/manual"
        message = f"{found} does not exist or is empty.*{last[name]}$"
        with pytest.raises(UserError, match=message):
            build.prepare(name, str(tmp_path / "data"), manual and str(found))
