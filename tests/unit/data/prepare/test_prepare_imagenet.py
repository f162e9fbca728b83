"""TFDS's imagenet2012 from small archives: content and errors."""

import csv
import io
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from imagenet_archives import CMYK, PNG, TRAIN, VALIDATION
from PIL import Image

from vt_flax.data.prepare import build
from vt_flax.data.sources import open_source
from vt_flax.errors import UserError


@pytest.fixture(scope="module")
def class_index(real_data) -> dict[str, int]:
    """Class indices by WordNet id, from a list that is not TFDS's."""
    with open(real_data / "imagenet_samples.csv", newline="") as file:
        return {row["wnid"]: int(row["index"]) for row in csv.DictReader(file)}


def features(data_dir, split) -> dict[str, dict]:
    """Returns every stored example by its file name, the images still encoded."""
    builder = tfds.builder_from_directory(f"{data_dir}/imagenet2012/5.1.0")
    data = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return {example["file_name"].decode(): example for example in data}


def test_training_images_are_the_archives_with_the_right_classes(
    small_imagenet, prepared_imagenet, class_index
):
    source = open_source("imagenet2012", "train", prepared_imagenet)
    stored = {example.image: example.label for example in source.read(range(30))}
    assert len(source) == len(stored) == 30
    for name, content in small_imagenet.train.items():
        assert stored[content] == class_index[name.partition("_")[0]]
    ids = tuple(sorted(class_index, key=class_index.get))
    assert source.class_names == ids


def test_validation_labels_are_those_that_tfds_ships(
    small_imagenet, prepared_imagenet, class_index
):
    shipped = pathlib.Path(tfds.core.tfds_path("datasets/imagenet2012"))
    labels = (shipped / "validation_labels.txt").read_text().split()
    assert len(labels) == 50000
    stored = features(prepared_imagenet, "validation")
    assert len(stored) == 16
    for number, content in enumerate(small_imagenet.validation, 1):
        example = stored[f"ILSVRC2012_val_{number:08}.JPEG"]
        assert example["image"] == content
        assert example["label"] == class_index[labels[number - 1]]


def test_the_cmyk_and_the_png_image_become_rgb_jpegs(
    small_imagenet, prepared_imagenet, class_index
):
    stored = features(prepared_imagenet, "train")
    assert {*small_imagenet.train, CMYK, PNG} == set(stored)
    for name in (CMYK, PNG):
        assert stored[name]["label"] == class_index[name.partition("_")[0]]
        image = Image.open(io.BytesIO(stored[name]["image"]))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        difference = np.subtract(image, small_imagenet.odd[name], dtype=np.float64)
        assert np.abs(difference).mean() < 3


def prepare(data_dir, manual_dir):
    return build.prepare("imagenet2012", str(data_dir), str(manual_dir))


def test_a_missing_or_truncated_archive(small_imagenet, tmp_path):
    archives, data = tmp_path / "archives", tmp_path / "data"
    shutil.copytree(small_imagenet.archives, archives)
    content = (archives / TRAIN).read_bytes()
    (archives / TRAIN).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="building imagenet2012/5.1.0: .*data"):
        prepare(data, archives)
    (archives / VALIDATION).unlink()
    with pytest.raises(UserError, match=f"{VALIDATION} is not there.*image-net.org"):
        prepare(data, archives)
    assert not list(data.rglob("*5.1.0"))
    # What an interrupted build leaves behind does not count.
    (data / "imagenet2012" / "incomplete.ABCDEF_5.1.0").mkdir()
    with pytest.raises(UserError, match="is not prepared"):
        open_source("imagenet2012", "train", str(data))


def test_a_folder_that_holds_something_else(small_imagenet, tmp_path):
    folder = tmp_path / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    (folder / "notes").write_text("mine")
    with pytest.raises(UserError, match="holds no finished dataset: move it away"):
        prepare(tmp_path, small_imagenet.archives)
    assert (folder / "notes").read_text() == "mine"
