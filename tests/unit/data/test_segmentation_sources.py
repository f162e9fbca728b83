"""TFDS datasets with masks: features, classes and label maps."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from image_files import encode
from pair_trees import draw_image, draw_labels, make_lip
from PIL import Image

from vt_flax.data.prepare import build
from vt_flax.data.segmentation_sources import TFDSPairs
from vt_flax.data.sources import prepared_builder, tfds_builder
from vt_flax.errors import UserError

WIDTH, HEIGHT = 24, 16
IMAGE = tfds.features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="png")
MASK = tfds.features.Image(shape=(HEIGHT, WIDTH, 1), encoding_format="png")


def store(folder, features, name="roads"):
    """Stores an example without names of classes; returns its builder, and it."""
    kinds = {"image": draw_image(0, WIDTH, HEIGHT), "label": 1}
    kinds["depth"] = np.zeros((9, 9), np.uint16)
    mask = draw_labels(0, WIDTH, HEIGHT, (0, 1, 2, 255))
    found = {key: kinds.get(key.partition("_")[0], mask) for key in features}
    one = {k: v if k == "label" else encode(v) for k, v in found.items()}
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": [(0, one)]},
        data_dir=str(folder),
        file_format="array_record",
    )
    return tfds_builder(name, str(folder)), one


def decoded(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A dataset whose features say image and mask, and nothing of classes."""
    folder = tmp_path_factory.mktemp("plain")
    return store(folder, {"image": IMAGE, "mask": MASK})[0]


def opened(builder, **options):
    return TFDSPairs(builder, "roads", "train", **options)


# Features.


def test_the_only_mask_is_found(tmp_path):
    depth = tfds.features.Image(
        shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
    )
    features = {"image_rgb": IMAGE, "trimap": MASK, "depth": depth}
    features["label"] = tfds.features.ClassLabel(num_classes=3)
    builder, one = store(tmp_path, features)
    (pair,) = opened(builder, num_classes=3).read([0])
    assert (pair.image, pair.label) == (one["image_rgb"], one["trimap"])
    with pytest.raises(
        UserError, match="'depth' must name one of its masks .*: trimap$"
    ):
        opened(builder, mask_feature="depth", num_classes=3)


def test_one_of_several_features_is_chosen(tmp_path, digits):
    features = {"image_left": IMAGE, "image_right": IMAGE, "road": MASK, "parts": MASK}
    builder, one = store(tmp_path, features)
    options = {"mask_feature": "parts", "image_feature": "image_right"}
    (pair,) = opened(builder, num_classes=3, **options).read([0])
    assert (pair.image, pair.label) == (one["image_right"], one["parts"])
    for mask, words in (
        ("", "mask_feature '' must name one .*: parts, road$"),
        ("parts", "image_feature '' must name .*: image_left, image_right$"),
    ):
        with pytest.raises(UserError, match=words):
            opened(builder, mask_feature=mask, num_classes=3)
    with pytest.raises(UserError, match="'digits': .*mask_feature .*: it has none"):
        TFDSPairs(tfds_builder("digits", digits), "digits", "train")


# Classes.


def test_a_number_of_classes(plain):
    source = opened(plain, num_classes=3)
    assert source.class_names == ("class 0", "class 1", "class 2")
    assert source.mirrored == ()
    assert source.label_map.dtype == np.uint8
    assert source.label_map.tolist() == [0, 1, 2, *[254] * 252, 255]
    # 254 as a stored value is no class: classes are 0 to 253.
    source = opened(plain, num_classes=254)
    assert source.label_map.tolist() == [*range(254), 254, 255]
    for number, count in ((0, "no known"), (1, 1), (255, 255)):
        with pytest.raises(
            UserError, match=f"'roads' has {count} classes, .* 2 to 254"
        ):
            opened(plain, num_classes=number)


def test_labeled_images_have_names(tmp_path):
    mask = tfds.features.LabeledImage(
        labels=["sky", "road", "car"], shape=(HEIGHT, WIDTH, 1), encoding_format="png"
    )
    builder, _ = store(tmp_path, {"image": IMAGE, "mask": mask})
    source = opened(builder)
    assert source.class_names == ("sky", "road", "car")
    assert source.label_map.tolist() == [0, 1, 2, *[254] * 252, 255]
    with pytest.raises(UserError, match="has 3 classes, with model.num_classes 4"):
        opened(builder, num_classes=4)
    source = opened(builder, label_map=(1, 0, 0))
    assert source.class_names == ("road/car", "sky")


def test_label_maps(plain):
    source = opened(plain, label_map=(255, 1, 0))
    assert source.class_names == ("class 0", "class 1")
    assert source.label_map.tolist() == [255, 1, 0, *[254] * 252, 255]
    assert len(opened(plain, label_map=(0, 2), num_classes=4).class_names) == 4
    values = (*range(2), *[0] * 253, 1)
    assert opened(plain, label_map=values).label_map.tolist() == list(values)


@pytest.mark.parametrize(
    "label_map, number, words",
    [
        ((0, 254), 0, "each a class .0 to 1, all in use.* or 255 .*, not 254"),
        ((0, 1, 3), 0, ".0 to 2, all in use unless .* for no label, not 3"),
        ((0, 1, 2), 2, ".0 to 1, .* or 255 for no label, not 2"),
        ((255, 255), 0, "has no known classes"),
        ((0, 1) * 129, 0, "at most 256 entries, .*, not 258 entries"),
    ],
)
def test_bad_label_maps(plain, label_map, number, words):
    with pytest.raises(UserError, match=words):
        opened(plain, label_map=label_map, num_classes=number)


def test_mirrored_classes(tmp_path):
    make_lip(tmp_path)
    builder = build.prepare("lip", str(tmp_path / "data"), str(tmp_path))
    source = TFDSPairs(builder, "lip", "validation")
    assert source.class_names[:2] == ("Background", "Hat")
    assert source.mirrored[13:] == (13, 15, 14, 17, 16, 19, 18)
    with pytest.raises(UserError, match="'lip' has classes that change sides"):
        TFDSPairs(builder, "lip", "train", label_map=[0] * 14 + [1, 2, 1, 2, 1, 2])


def test_oxford_pets(tmp_path):
    features = {"image": IMAGE, "segmentation_mask": MASK}
    store(tmp_path, features, "oxford_iiit_pet")
    folder = tmp_path / "oxford_iiit_pet" / "1.0.0"
    builder = tfds.builder_from_directory(str(folder))
    source = TFDSPairs(builder, "oxford_iiit_pet", "train")
    assert source.class_names == ("background", "pet")
    # Foreground, background, and the border.
    assert source.label_map[[1, 2, 3]].tolist() == [1, 0, 255]
    assert source.label_map[0] == source.label_map[4] == 254


def test_camvid(real_data):
    """The scenes themselves show where classes lie, and how much of them is there."""
    builder = prepared_builder("camvid", str(real_data))
    assert len(TFDSPairs(builder, "camvid", "validation", num_classes=11)) == 101
    source = TFDSPairs(builder, "camvid", "train")
    counts = np.zeros((11, 360))
    for pair in source.read(range(0, len(source), 24)):
        labels = source.label_map[decoded(pair.label)]
        assert labels.shape == decoded(pair.image).shape[:2] == (360, 480)
        assert set(np.unique(labels)) <= {*range(11), 255}
        counts += [(labels == i).sum(1) for i in range(11)]
    area = dict(zip(source.class_names, counts.sum(1) / counts.sum(), strict=True))
    height = counts @ np.arange(360) / counts.sum(1) / 360
    height = dict(zip(source.class_names, height, strict=True))
    assert min(height, key=height.get) == "sky"
    assert {*sorted(height, key=height.get)[-2:]} == {"road", "pavement"}
    assert area["road"] > area["pavement"] > area["sign"]
    largest = sorted(area, key=area.get, reverse=True)
    assert {*largest[:3]} == {"road", "building", "sky"}
    assert {*largest[6:]} == {"sign", "fence", "pole", "pedestrian", "bicyclist"}
    assert height["sign"] < height["fence"] < height["bicyclist"]
