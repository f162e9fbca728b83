"""TFDS datasets with masks: features, classes, label maps, records."""

import collections
import io
import shutil

import numpy as np
import psutil
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from image_files import encode
from pair_trees import draw_image, draw_labels, make_lip
from PIL import Image

from vt_flax.data.prepare import build
from vt_flax.data.prepare.convert import convert
from vt_flax.data.segmentation_sources import TFDSPairs, notes_on_classes
from vt_flax.data.source import cached
from vt_flax.data.sources import prepared_builder, tfds_builder
from vt_flax.errors import UserError

WIDTH, HEIGHT, COUNT = 24, 16, 6
IMAGE = tfds.features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="png")
MASK = tfds.features.Image(shape=(HEIGHT, WIDTH, 1), encoding_format="png")


def example(seed, keys, values=(0, 1, 2, 255)):
    """Returns an encoded example: `image*` are images, all other features masks."""
    return {
        key: encode(
            draw_image(seed, WIDTH, HEIGHT)
            if key.startswith("image")
            else draw_labels(seed, WIDTH, HEIGHT, values)
        )
        for key in keys
    }


def store(folder, features, examples=None, name="roads", file_format="array_record"):
    """Stores a dataset without code or names, and returns its builder and examples."""
    if examples is None:
        examples = [example(i, features) for i in range(COUNT)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": list(enumerate(examples)), "test": [(0, examples[0])]},
        data_dir=str(folder),
        file_format=file_format,
    )
    return tfds_builder(name, str(folder)), examples


def decoded(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


# Records.

Memory = collections.namedtuple("Memory", "available")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A dataset whose features say image and mask, and nothing of classes."""
    folder = tmp_path_factory.mktemp("plain")
    return store(folder, {"image": IMAGE, "mask": MASK})


def test_records(plain, monkeypatch):
    builder, examples = plain
    source = TFDSPairs(builder, "roads", "train", num_classes=3)
    assert len(source) == COUNT
    pairs = source.read(range(COUNT))
    expected = {(one["image"], one["mask"]) for one in examples}
    assert {(pair.image, pair.label) for pair in pairs} == expected
    order = [4, 0, 4]
    assert source.read(order) == [pairs[i] for i in order]
    assert source.describe(4) == "roads train, example 4"
    sizes = sum(len(pair.image) + len(pair.label) for pair in pairs)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(sizes - 1))
    with pytest.raises(UserError, match="data.cache keeps about .*set data.cache to"):
        cached(source)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(sizes))
    cached(source)


def test_records_in_tensorflow(plain):
    source = TFDSPairs(plain[0], "roads", "train", num_classes=3)
    indices = [3, 1, 5]
    for kept in (source, cached(source)):
        records, labels, orientations = kept.fetch(indices)
        assert orientations == [1] * len(indices)
        for pair, record, label in zip(
            source.read(indices), records, labels, strict=True
        ):
            image, mask = tf.function(source.parse)(record, label)
            assert image.shape == mask.shape == ()
            assert (image.numpy(), mask.numpy()) == (pair.image, pair.label)


def test_slices(plain):
    def masks(split):
        source = TFDSPairs(plain[0], "roads", split, num_classes=3)
        return [pair.label for pair in source.read(range(len(source)))]

    assert masks("train[:50%]") + masks("train[3:]") == masks("train")
    assert len(masks("train[:50%]")) == 3
    assert masks("train+test") == masks("train") + masks("test")
    assert sorted(masks("all")) == sorted(masks("train+test"))


@pytest.mark.parametrize(
    "split, words",
    [
        ("train[:0]", "is empty"),
        ("train[:x]", "split 'train\\[:x\\]' of dataset 'roads': Unrecognized split"),
        ("train+tset", "Unknown split 'tset'"),
        ("all[:50%]", "'all' does not support slice"),
    ],
)
def test_bad_splits(plain, split, words):
    with pytest.raises(UserError, match=words):
        TFDSPairs(plain[0], "roads", split, num_classes=3)


def test_a_damaged_record(plain, tmp_path):
    shutil.copytree(plain[0].data_path.parent, tmp_path / "roads")
    builder = tfds_builder("roads", str(tmp_path))
    source = TFDSPairs(builder, "roads", "train", num_classes=3)
    (file,) = (tmp_path / "roads").rglob("*train.array_record*")
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(UserError, match=f"roads train, example 3, in {file}: cannot"):
        source.read([3])


def test_other_formats_are_to_be_converted(tmp_path):
    features = {"image": IMAGE, "mask": MASK}
    builder, examples = store(tmp_path, features, file_format="tfrecord")
    message = "as tfrecord.*prepare_data convert roads --data_dir " + str(tmp_path)
    with pytest.raises(UserError, match=message):
        TFDSPairs(builder, "roads", "train", num_classes=3)
    source = TFDSPairs(convert("roads", str(tmp_path)), "roads", "train", num_classes=3)
    assert {pair.image for pair in source.read(range(COUNT))} == {
        one["image"] for one in examples
    }


# Features.


def test_masks_are_found(tmp_path):
    features = {
        "picture": IMAGE,
        "trimap": MASK,
        "label": tfds.features.ClassLabel(num_classes=3),
        "depth": tfds.features.Image(
            shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
        ),
    }
    one = example(0, ["image", "trimap"])
    depth = encode(Image.fromarray(np.zeros((9, 9), np.uint16)))
    one = {"picture": one["image"], "trimap": one["trimap"], "label": 1, "depth": depth}
    builder, _ = store(tmp_path, features, [one])
    (pair,) = TFDSPairs(builder, "roads", "train", num_classes=3).read([0])
    assert (pair.image, pair.label) == (one["picture"], one["trimap"])
    message = "mask_feature 'depth' must name one of its masks .*: trimap$"
    with pytest.raises(UserError, match=message):
        TFDSPairs(builder, "roads", "train", "depth", num_classes=3)


def test_one_of_several_features_is_chosen(tmp_path, digits):
    features = {"image_left": IMAGE, "image_right": IMAGE, "road": MASK, "parts": MASK}
    builder, (first, *_) = store(tmp_path, features)
    for keys in (("image_left", "parts"), ("image_right", "road")):
        image, mask = keys
        source = TFDSPairs(
            builder, "roads", "test", mask, num_classes=3, image_feature=image
        )
        (pair,) = source.read([0])
        assert (pair.image, pair.label) == (first[image], first[mask])
    for mask, words in (
        ("", "mask_feature '' must name one .*: parts, road$"),
        ("image_left", "mask_feature 'image_left' must name .*: parts, road$"),
        ("parts", "image_feature '' must name .*: image_left, image_right$"),
    ):
        with pytest.raises(UserError, match=words):
            TFDSPairs(builder, "roads", "train", mask, num_classes=3)
    with pytest.raises(UserError, match="'digits': .*mask_feature .*: it has none"):
        TFDSPairs(tfds_builder("digits", digits), "digits", "train")


# Classes.


def test_a_number_of_classes(plain):
    source = TFDSPairs(plain[0], "roads", "train", num_classes=3)
    assert source.class_names == ("class 0", "class 1", "class 2")
    assert source.mirrored == ()
    assert source.label_map.dtype == np.uint8
    assert source.label_map.tolist() == [0, 1, 2, *[254] * 252, 255]
    # 254 as a stored value is no class: classes are 0 to 253.
    source = TFDSPairs(plain[0], "roads", "train", num_classes=254)
    assert source.label_map.tolist() == [*range(254), 254, 255]


@pytest.mark.parametrize("number, count", [(0, "no known"), (1, 1), (255, 255)])
def test_too_few_and_too_many_classes(plain, number, count):
    message = f"'roads' has {count} classes, and must have 2 to 254"
    with pytest.raises(UserError, match=message):
        TFDSPairs(plain[0], "roads", "train", num_classes=number)


def test_labeled_images_have_names(tmp_path):
    mask = tfds.features.LabeledImage(
        labels=["sky", "road", "car"], shape=(HEIGHT, WIDTH, 1), encoding_format="png"
    )
    builder, _ = store(tmp_path, {"image": IMAGE, "mask": mask})
    source = TFDSPairs(builder, "roads", "train")
    assert source.class_names == ("sky", "road", "car")
    assert source.label_map.tolist() == [0, 1, 2, *[254] * 252, 255]
    assert TFDSPairs(builder, "roads", "train", num_classes=3).class_names[0] == "sky"
    message = "has 3 classes, not the 4 of model.num_classes"
    with pytest.raises(UserError, match=message):
        TFDSPairs(builder, "roads", "train", num_classes=4)
    source = TFDSPairs(builder, "roads", "train", label_map=(1, 0, 0))
    assert source.class_names == ("road/car", "sky")


def test_label_maps(plain):
    source = TFDSPairs(plain[0], "roads", "train", label_map=(255, 1, 0))
    assert source.class_names == ("class 0", "class 1")
    assert source.label_map.tolist() == [255, 1, 0, *[254] * 252, 255]
    source = TFDSPairs(plain[0], "roads", "train", label_map=(0, 2), num_classes=4)
    assert len(source.class_names) == 4
    values = (*range(2), *[0] * 253, 1)
    source = TFDSPairs(plain[0], "roads", "train", label_map=values)
    assert source.label_map.tolist() == list(values)


@pytest.mark.parametrize(
    "label_map, number, words",
    [
        ((0, 254), 0, "each a class .0 to 1, all in use.* or 255 .*, not 254"),
        ((0, -1), 0, "for no label, not -1"),
        ((0, 1, 3), 0, ".0 to 2, all in use unless .* for no label, not 3"),
        ((0, 1, 2), 2, ".0 to 1, .* or 255 for no label, not 2"),
        ((0, 0), 0, "has 1 classes, and must have 2"),
        ((255, 255), 0, "has no known classes, and must have 2"),
        ((0, 1) * 129, 0, "at most 256 entries, .*, not 258 entries"),
    ],
)
def test_bad_label_maps(plain, label_map, number, words):
    with pytest.raises(UserError, match=words):
        TFDSPairs(plain[0], "roads", "train", label_map=label_map, num_classes=number)


def test_mirrored_classes(tmp_path):
    make_lip(tmp_path)
    builder = build.prepare("lip", str(tmp_path / "data"), str(tmp_path))
    source = TFDSPairs(builder, "lip", "validation")
    assert len(source) == 3
    assert source.class_names[:2] == ("Background", "Hat")
    assert source.mirrored[13:] == (13, 15, 14, 17, 16, 19, 18)
    assert source.label_map.tolist() == [*range(20), *[254] * 235, 255]
    # Clothes, left limbs, right limbs, the rest.
    limbs = [0] * 14 + [1, 2, 1, 2, 1, 2]
    source = TFDSPairs(builder, "lip", "train", label_map=limbs)
    assert source.mirrored == (0, 2, 1)
    assert source.class_names[1] == "Left-arm/Left-leg/Left-shoe"
    both = [0] * 14 + [1] * 6
    assert TFDSPairs(builder, "lip", "train", label_map=both).mirrored == ()
    uneven = [0] * 14 + [1, 2, 1, 0, 1, 2]
    with pytest.raises(UserError, match="mirrored, class 0 would be 0 and 1: map left"):
        TFDSPairs(builder, "lip", "train", label_map=uneven)


def test_oxford_pets(tmp_path):
    features = {"image": IMAGE, "segmentation_mask": MASK}
    examples = [example(i, features, [1, 2, 3]) for i in range(3)]
    store(tmp_path, features, examples, "oxford_iiit_pet")
    folder = tmp_path / "oxford_iiit_pet" / "1.0.0"
    builder = tfds.builder_from_directory(str(folder))
    source = TFDSPairs(builder, "oxford_iiit_pet", "train")
    assert source.class_names == ("background", "pet")
    # Foreground, background, and the border.
    assert source.label_map[[1, 2, 3]].tolist() == [1, 0, 255]
    assert source.label_map[0] == source.label_map[4] == 254
    # The border as a class of its own, as some have it.
    source = TFDSPairs(builder, "pets", "train", label_map=(255, 1, 0, 2))
    assert len(source.class_names) == 3


def test_camvid(real_data):
    builder = prepared_builder("camvid", str(real_data))
    source = TFDSPairs(builder, "camvid", "validation", num_classes=11)
    assert len(source) == 101 and len(source.class_names) == 11
    for pair in source.read([0, 50]):
        labels = source.label_map[decoded(pair.label)]
        assert labels.shape == decoded(pair.image).shape[:2] == (360, 480)
        assert set(np.unique(labels)) <= {*range(11), 255}
    with pytest.raises(UserError, match="has 11 classes, not the 12"):
        TFDSPairs(builder, "camvid", "train", num_classes=12)


def test_the_names_of_camvid(real_data):
    """The scenes themselves show where classes lie, and how much of them is there."""
    source = TFDSPairs(prepared_builder("camvid", str(real_data)), "camvid", "train")
    counts = np.zeros((11, 360))
    for pair in source.read(range(0, len(source), 12)):
        labels = source.label_map[decoded(pair.label)]
        counts += [(labels == i).sum(1) for i in range(11)]
    area = dict(zip(source.class_names, counts.sum(1) / counts.sum(), strict=True))
    height = counts @ np.arange(360) / counts.sum(1) / 360
    height = dict(zip(source.class_names, height, strict=True))
    assert min(height, key=height.get) == "sky"
    assert {*sorted(height, key=height.get)[-2:]} == {"road", "pavement"}
    assert area["road"] > area["pavement"] > area["sign"]
    largest = sorted(area, key=area.get, reverse=True)
    assert {*largest[:3]} == {"road", "building", "sky"}
    assert {*largest[3:6]} == {"tree", "car", "pavement"}
    assert {*largest[6:]} == {"sign", "fence", "pole", "pedestrian", "bicyclist"}
    assert height["sign"] < height["fence"] < height["bicyclist"]


# Classes without a pixel.


def test_classes_without_a_pixel_are_noted_where_that_is_known(tmp_path):
    keys = {"image": IMAGE, "mask": MASK}
    examples = [example(i, keys, (0, 2, 255)) for i in range(COUNT)]
    builder, _ = store(tmp_path, keys, examples)
    pixels = np.concatenate([decoded(one["mask"]).ravel() for one in examples])

    def notes(some, label_map=(), count=0):
        source = TFDSPairs(builder, "roads", "train", "", label_map, count)
        masks = [one.label for one in source.read(range(some))]
        return notes_on_classes(source, masks)

    # All masks are counted; a sample leaves it open.
    (note,) = notes(COUNT, count=4)
    assert note.startswith(
        "roads train has no pixel of 2 of 4 classes (class 1, class 3); "
        f"{(pixels == 255).mean():.0%} of the pixels have no label"
    )
    assert notes(3, count=4) == []
    # 255 may be mapped to a class; every value to one class; and a class to nothing.
    mapped = [0, 255, 1, *[255] * 252, 2]
    assert notes(COUNT, mapped) == []
    (note,) = notes(3, [0, 255, 0], 2)
    assert "1 of 2 classes in a sample of its masks (class 1); " in note
    (note,) = notes(COUNT, [0, 255, 2], 3)
    assert "has no pixel of 1 of 3 classes (class 1); " in note
    (note,) = notes(COUNT, [255, 255, 255], 2)
    assert "has no pixel of 2 of 2 classes (class 0, class 1); 100% of" in note
