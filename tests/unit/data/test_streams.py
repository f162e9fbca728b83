"""TFRecord data, which has no random access and is read as a stream."""

import collections
import os
import shutil

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from image_files import encode

from vt_flax.data.batches import eval_batches, train_batches
from vt_flax.data.sources import open_configured, open_source, prepared_builder
from vt_flax.data.tfds_sources import TFDSSource
from vt_flax.errors import UserError
from vt_flax.training.config import default_config


def settings(**changes):
    config = default_config().data
    config.update({"train_crop": "center", "workers": 2, "shuffle_buffer": 200})
    config.update(changes)
    return config


def train(source, *, first=0, last=4, seed=0, batch=60, indices=None, **changes):
    rest = {"seed": seed, "first": first, "last": last, "local_indices": indices}
    return list(train_batches(source, settings(**changes), batch=batch, **rest))


def evaluate(source, batch, indices=None, **changes):
    config = settings(**changes)
    return list(eval_batches(source, config, batch=batch, local_indices=indices))


def examples(batches):
    """Counts the pairs of pixels and label that are in batches."""
    found = collections.Counter()
    for batch in batches:
        real = batch.get("mask", np.ones(len(batch["label"]), bool))
        pairs = zip(batch["image"][real], batch["label"][real], strict=True)
        found.update((image.tobytes(), int(label)) for image, label in pairs)
    return found


@pytest.fixture(scope="module")
def stored(digits):
    """The digits of each split, by random access."""
    return {
        split: examples(evaluate(open_source("digits", split, digits), 500))
        for split in ("train", "test", "test[:25%]")
    }


def test_what_is_given_up_is_noted_and_refused(digits_tfrecord):
    (note,) = open_source("digits", "train", str(digits_tfrecord)).notes
    assert "tfrecord" in note and "a restart begins a new stream" in note
    assert f"prepare_data convert digits --data_dir {digits_tfrecord}" in note
    config = settings(name="digits", data_dir=str(digits_tfrecord), cache=True)
    with pytest.raises(UserError, match="data.cache .*random access.* convert digits"):
        open_configured(config, "train")
    builder = prepared_builder("digits", str(digits_tfrecord))
    with pytest.raises(UserError, match="as tfrecord, without .* convert digits"):
        TFDSSource(builder, "digits", "train", ("image", "label"))


@pytest.mark.parametrize("split, processes", [("test", 1), ("test[:25%]", 4)])
def test_an_evaluation_has_each_example_once(
    split, processes, digits_tfrecord, stored, monkeypatch
):
    source = open_source("digits", split, str(digits_tfrecord))
    found, steps = collections.Counter(), set()
    # Scattered, as some meshes lay out a batch.
    for process, indices in enumerate(np.arange(64).reshape(-1, processes).T):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        batches = evaluate(source, 64, indices)
        assert {len(batch["label"]) for batch in batches} == {64 // processes}
        found += examples(batches)
        steps.add(len(batches))
    assert found == stored[split]
    assert len(steps) == 1  # or some processes would wait for the others


def test_epochs_are_shuffled_and_do_not_end(digits_tfrecord, stored):
    source = open_source("digits", "train", str(digits_tfrecord))
    batches = train(source, last=48)  # two epochs and six images
    # Every example twice, up to those that are in the buffer when it ends.
    assert (stored["train"] + stored["train"] - examples(batches)).total() < 200
    in_order = evaluate(source, 60)
    assert not np.array_equal(batches[0]["label"], in_order[0]["label"])
    again, other, later = train(source), train(source, seed=1), train(source, first=1)
    np.testing.assert_array_equal(batches[1]["image"], again[1]["image"])
    assert len(later) == 3
    for another in (*other, *later):
        assert not np.array_equal(batches[1]["label"], another["label"])


def test_processes_share_no_example(digits_tfrecord, monkeypatch):
    source = open_source("digits", "train", str(digits_tfrecord))
    shares = []
    for process, indices in enumerate(np.split(np.arange(200), 2)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares.append(set(examples(train(source, batch=200, indices=indices))))
    assert len(shares[0]) > 350
    assert len(shares[0] & shares[1]) < 10  # a few digits are stored twice


@pytest.mark.parametrize("damage", ["truncated", "shorter", "removed"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_damaged_file_ends_the_reading(damage, on_error, digits_tfrecord, tmp_path):
    shutil.copytree(digits_tfrecord, tmp_path, dirs_exist_ok=True)
    file = sorted(tmp_path.glob("digits/*/digits-test.*"))[1]
    source = open_source("digits", "test", str(tmp_path))
    if damage == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "shorter":
        os.truncate(file, 0)
    else:
        file.unlink()
    with pytest.raises(UserError, match=f"^digits test, in {file.parent}: cannot be"):
        evaluate(source, 10, on_error=on_error)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Ten examples, of which the fourth is truncated and the eighth has no label."""
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    files = [encode(image) for image in images]
    files[3] = files[3][:100]
    features = {
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(names=["even", "odd"]),
    }
    labels = [-1 if i == 7 else i % 2 for i in range(10)]
    pairs = enumerate(zip(files, labels, strict=True))
    rows = [(i, {"image": file, "label": label}) for i, (file, label) in pairs]
    folder = str(tmp_path_factory.mktemp("damaged"))
    tfds.dataset_builders.store_as_tfds_dataset(
        name="damaged",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": rows},
        data_dir=folder,
        file_format="tfrecord",
        disable_shuffling=True,
    )
    return open_source("damaged", "train", folder), images


def test_bad_examples_are_named(damaged):
    source, _ = damaged
    with pytest.raises(UserError, match="damaged train, example .*__3: not a readable"):
        evaluate(source, 10)
    with pytest.raises(UserError, match="damaged train, example .*__[37]: "):
        train(source, batch=10, last=2)


def test_bad_examples_are_skipped_and_counted(damaged):
    source, images = damaged
    (batch,) = evaluate(source, 12, on_error="skip")
    assert batch["bad"].tolist() == [i in (3, 7) for i in range(12)]
    assert batch["mask"].tolist() == [i not in (3, 7, 10, 11) for i in range(12)]
    # A buffer of one example shuffles nothing.
    for batch in train(source, batch=10, last=9, on_error="skip", shuffle_buffer=1):
        assert batch["bad"].tolist() == [i in (3, 7) for i in range(10)]
        replaced = [0, 1, 2, 4, 4, 5, 6, 8, 8, 9]
        np.testing.assert_array_equal(batch["image"], images[replaced])
