"""From TFRecord to array_record: every record, stops, and an unharmed source."""

import hashlib
import io
import pathlib
import shutil

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.core.file_adapters import FileFormat

from vt_flax.data.prepare import build
from vt_flax.data.prepare import convert as module
from vt_flax.data.prepare.convert import convert
from vt_flax.data.sources import open_source, tfds_builder
from vt_flax.errors import UserError

FOLDER = "digits/1.0.0"


@pytest.fixture
def stored(digits_tfrecord, tmp_path) -> pathlib.Path:
    """A copy of it that a test may change."""
    return pathlib.Path(shutil.copytree(digits_tfrecord, tmp_path / "stored"))


def contents(folder) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((folder / FOLDER).iterdir())
    }


def check_records(source, result):
    """Compares every record with what TensorFlow and array_record read."""
    files = sorted((source / FOLDER).glob("*.tfrecord*"))
    assert len(files) == 6
    for file in files:
        expected = [bytes(r.numpy()) for r in tf.data.TFRecordDataset(str(file))]
        name = file.name.replace(".tfrecord", ".array_record")
        reader = ArrayRecordReader(str(result / FOLDER / name))
        assert reader.read(0, reader.num_records()) == expected


@pytest.mark.parametrize("out_dir", ["", "out"])
def test_every_record_is_there(stored, digits, tmp_path, out_dir):
    before = contents(stored)
    beside = out_dir != "out"
    out = stored if beside else tmp_path / "out"
    convert("digits", str(stored), out_dir and str(tmp_path / out_dir))
    check_records(stored, out)
    after = contents(stored)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == ({"dataset_info.json"} if beside else set())
    for split, count in (("train", 1437), ("test", 360)):
        converted = open_source("digits", split, str(out))
        built = open_source("digits", split, digits)
        assert len(converted) == count
        assert converted.read(range(count)) == built.read(range(count))
        assert converted.class_names == built.class_names
    # TensorFlow's pipelines go on reading the TFRecord files.
    again = tfds.builder("digits", data_dir=str(stored))
    assert again.info.file_format.value == "tfrecord"
    assert len(list(again.as_dataset(split="test"))) == 360


def test_a_second_run_after_a_stop(stored, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ("digits", str(stored), str(out))
    converted = []
    convert_file = module._convert_file

    def stopping(source, file, output, count):
        if len(converted) == 4:
            raise KeyboardInterrupt
        convert_file(source, file, output, count)
        converted.append(pathlib.Path(output))

    monkeypatch.setattr(module, "_convert_file", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert(*arguments)
    unfinished = tfds_builder("digits", str(out))
    assert FileFormat.ARRAY_RECORD not in unfinished.info.available_file_formats()
    assert not unfinished.is_prepared()
    kept = {file: file.stat().st_mtime_ns for file in converted}

    monkeypatch.setattr(module, "_convert_file", convert_file)
    convert(*arguments)
    assert {file: file.stat().st_mtime_ns for file in converted} == kept
    check_records(stored, out)
    assert len(open_source("digits", "train", str(out))) == 1437


def test_a_dataset_that_tfds_has_no_code_of(tmp_path):
    # All that is known of it, the names of its classes too, stands in its folder.
    image = io.BytesIO()
    Image.new("RGB", (2, 2)).save(image, "PNG")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="signs",
        version="2.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(2, 2, 3)),
                "label": tfds.features.ClassLabel(names=["stop", "yield"]),
            }
        ),
        split_datasets={"train": [(0, {"image": image.getvalue(), "label": 1})]},
        data_dir=str(tmp_path / "stored"),
        file_format="tfrecord",
    )
    convert("signs", str(tmp_path / "stored"), str(tmp_path / "out"))
    source = open_source("signs", "train", str(tmp_path / "out"))
    assert source.class_names == ("stop", "yield")
    (example,) = source.read([0])
    assert (example.image, example.label) == (image.getvalue(), 1)


def test_building_what_is_there_as_tfrecord(stored):
    hint = f"as tfrecord: .* convert digits --data_dir {stored}`"
    with pytest.raises(UserError, match=hint):
        build.prepare("digits", str(stored))


def test_a_damaged_file(stored):
    file = sorted((stored / FOLDER).glob("digits-train.tfrecord*"))[1]
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=f"converting {file}: DataLossError"):
        convert("digits", str(stored))
    file.write_bytes(b"")
    with pytest.raises(UserError, match=f"{file} holds 0 examples.*says 479"):
        convert("digits", str(stored))
    assert not list((stored / FOLDER).glob("incomplete*"))
    file.write_bytes(whole)
    convert("digits", str(stored))
    check_records(stored, stored)
