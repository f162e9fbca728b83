"""TFDS's imagenet2012 from small archives: content and checks."""

import csv
import hashlib
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


@pytest.fixture
def own_archives(small_imagenet, tmp_path, monkeypatch) -> pathlib.Path:
    """A copy of the small archives, which stand as the published ones."""
    folder = tmp_path / "archives"
    shutil.copytree(small_imagenet.archives, folder)
    expected = {}
    for name in (TRAIN, VALIDATION):
        expected[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(build, "ARCHIVES", expected)
    return folder


def prepare(data_dir, manual_dir, checksums=True):
    return build.prepare("imagenet2012", str(data_dir), str(manual_dir), checksums)


def contents(folder) -> dict[str, str]:
    """Returns the checksums of a dataset's files."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(pathlib.Path(folder).iterdir())
    }


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


def test_a_missing_or_truncated_archive(own_archives, tmp_path):
    content = (own_archives / TRAIN).read_bytes()
    (own_archives / TRAIN).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="building imagenet2012/5.1.0: .*data"):
        prepare(tmp_path / "data", own_archives, checksums=False)
    (own_archives / VALIDATION).unlink()
    with pytest.raises(UserError, match=f"{VALIDATION} is not there.*image-net.org"):
        prepare(tmp_path / "data", own_archives)
    with pytest.raises(UserError, match="downloads/manual/.* is not there"):
        build.prepare("imagenet2012", str(tmp_path / "data"))
    assert not list((tmp_path / "data").rglob("*5.1.0"))


def test_checksums_are_checked(own_archives, prepared_imagenet, tmp_path):
    good = (own_archives / VALIDATION).read_bytes()
    index = len(good) // 2
    bad = good[:index] + bytes([good[index] ^ 1]) + good[index + 1 :]
    (own_archives / VALIDATION).write_bytes(bad)
    message = f"{VALIDATION} is damaged: its MD5 is {hashlib.md5(bad).hexdigest()}"
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "data", own_archives)
    (own_archives / VALIDATION).write_bytes(good)
    # What an interrupted build leaves behind does not count.
    left = tmp_path / "data" / "imagenet2012" / "incomplete.ABCDEF_5.1.0"
    left.mkdir(parents=True)
    with pytest.raises(UserError, match="is not prepared"):
        open_source("imagenet2012", "train", str(tmp_path / "data"))
    prepare(tmp_path / "data", own_archives)
    path = "imagenet2012/5.1.0"
    assert contents(tmp_path / "data" / path) == contents(f"{prepared_imagenet}/{path}")


def test_a_prepared_dataset_stays_as_it_is(prepared_imagenet, capfd):
    before = contents(f"{prepared_imagenet}/imagenet2012/5.1.0")
    build.prepare("imagenet2012", prepared_imagenet)
    assert "imagenet2012/5.1.0 is already prepared" in capfd.readouterr().err
    assert contents(f"{prepared_imagenet}/imagenet2012/5.1.0") == before


def test_a_folder_that_holds_something_else(small_imagenet, tmp_path):
    folder = tmp_path / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    (folder / "notes").write_text("mine")
    with pytest.raises(UserError, match="holds no finished dataset: move it away"):
        prepare(tmp_path, small_imagenet.archives, checksums=False)
    assert (folder / "notes").read_text() == "mine"
