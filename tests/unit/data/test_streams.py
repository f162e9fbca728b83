"""TFRecord data, which has no random access and is read as a stream."""

import collections
import os
import shutil

import numpy as np
import pytest

from vt_flax.data.batches import eval_batches, train_batches
from vt_flax.data.source import StreamSource, cached
from vt_flax.data.sources import open_source
from vt_flax.errors import UserError
from vt_flax.training.config import default_config

TEST, TRAIN = 360, 1437


def settings(**changes):
    config = default_config().data
    config.update({"train_crop": "center", "workers": 2, "shuffle_buffer": 200})
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def stored(digits, digits_tfrecord):
    """The digits by their pixels: how many of each the splits have, and the label."""
    result = {}
    for split in ("train", "test"):
        source = open_source("digits", split, digits)
        batches = eval_batches(source, settings(), batch=500)
        result[split] = collections.Counter(
            pair for batch in batches for pair in pairs(batch)
        )
    return result


def pairs(batch):
    real = batch.get("mask", np.ones(len(batch["label"]), bool))
    images, labels = batch["image"][real], batch["label"][real]
    return [(i.tobytes(), int(n)) for i, n in zip(images, labels, strict=True)]


def stream(folder, split="train"):
    source = open_source("digits", split, str(folder))
    assert isinstance(source, StreamSource)
    return source


def train(
    source,
    first=0,
    last=4,
    seed=0,
    batch=60,
    process_index=0,
    process_count=1,
    **changes,
):
    return list(
        train_batches(
            source,
            settings(**changes),
            seed=seed,
            batch=batch,
            first=first,
            last=last,
            process_index=process_index,
            process_count=process_count,
        )
    )


def test_it_says_what_it_gives_up_and_what_to_do(digits_tfrecord):
    (note,) = stream(digits_tfrecord).notes
    assert "tfrecord" in note and "after a restart it begins anew" in note
    command = f"prepare_data convert digits --data_dir {digits_tfrecord}"
    assert command in note


@pytest.mark.parametrize("batch,process_count", [(100, 1), (64, 2), (8, 4)])
def test_an_evaluation_sees_each_example_once(
    batch, process_count, digits_tfrecord, stored
):
    source = stream(digits_tfrecord, "test")
    assert len(source) == TEST
    seen = collections.Counter()
    steps = set()
    for process_index in range(process_count):
        batches = list(
            eval_batches(
                source,
                settings(),
                batch=batch,
                process_index=process_index,
                process_count=process_count,
            )
        )
        steps.add(len(batches))
        for b in batches:
            assert b["image"].shape == (batch // process_count, 32, 32, 3)
            seen.update(pairs(b))
    assert seen == stored["test"]
    # All processes take part in each step, or the others would wait for ever.
    assert len(steps) == 1


def test_a_slice_is_a_slice(digits_tfrecord, stored):
    source = stream(digits_tfrecord, "test[:25%]")
    assert len(source) == 90
    (batch,) = eval_batches(source, settings(), batch=100)
    assert batch["mask"].sum() == 90
    assert not collections.Counter(pairs(batch)) - stored["test"]


def test_epochs_are_shuffled_and_do_not_end(digits_tfrecord, stored):
    batches = train(stream(digits_tfrecord), last=48)  # two epochs and three images
    seen = collections.Counter(pair for batch in batches for pair in pairs(batch))
    assert sum(seen.values()) == 48 * 60 > 2 * TRAIN
    # Every example twice, up to those in the buffer when it ends.
    missing = sum(((stored["train"] + stored["train"]) - seen).values())
    assert missing < 200
    # TFDS stored them in a shuffled order; ours is yet another.
    ordered = next(eval_batches(stream(digits_tfrecord), settings(), batch=60))
    assert not np.array_equal(batches[0]["label"], ordered["label"])


def test_the_seed_decides_the_order(digits_tfrecord):
    source = stream(digits_tfrecord)
    one, same, other = (train(source, seed=seed) for seed in (0, 0, 1))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
    assert not np.array_equal(one[0]["label"], other[0]["label"])


def test_a_restart_takes_another_order(digits_tfrecord):
    source = stream(digits_tfrecord)
    whole, later = train(source), train(source, first=2)
    assert len(later) == 2
    assert not np.array_equal(whole[2]["label"], later[0]["label"])
    assert not np.array_equal(whole[0]["label"], later[0]["label"])


def test_parts_share_no_example(digits_tfrecord):
    source = stream(digits_tfrecord)
    shares = [
        train(source, process_index=process_index, process_count=2, batch=200)
        for process_index in range(2)
    ]
    one, two = ({pair for batch in share for pair in pairs(batch)} for share in shares)
    # A few digits are stored twice.
    assert len(one) > 350 and len(one & two) < 10


def test_it_cannot_be_cached(digits_tfrecord):
    with pytest.raises(UserError, match="data.cache needs random access.*convert"):
        cached(stream(digits_tfrecord))


class Damaged(StreamSource):
    """Ten files in order, of which the fourth is damaged and the eighth mislabeled."""

    name = place = "damaged train"
    class_names = ("a", "b")

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def stream(self, seed, process_index, process_count, buffer):
        from vt_flax.data.host import tensorflow

        tf = tensorflow()
        names = [f"file-{i}" for i in range(10)]
        labels = np.asarray([i % 2 if i != 7 else 9 for i in range(10)])
        data = tf.data.Dataset.from_tensor_slices((names, self.files, labels))
        return data if seed is None else data.repeat(), 10


@pytest.fixture
def damaged(digits):
    source = open_source("digits", "train", digits)
    files = [example.image for example in source.read(range(10))]
    return Damaged([*files[:3], files[3][:100], *files[4:]])


def test_a_bad_example_is_named(damaged):
    with pytest.raises(UserError, match="damaged train, example file-3: not a readab"):
        train(damaged, batch=10, last=1)
    with pytest.raises(UserError, match="example file-3"):
        list(eval_batches(damaged, settings(), batch=10))
    damaged.files[3] = damaged.files[0]
    with pytest.raises(UserError, match="example file-7: label 9 is outside the 2"):
        train(damaged, batch=10, last=1)


def test_a_damaged_file_is_told_with_its_folder(digits_tfrecord, tmp_path):
    shutil.copytree(digits_tfrecord, tmp_path, dirs_exist_ok=True)
    file = sorted(tmp_path.glob("digits/*/digits-test.*"))[1]

    def told():
        with pytest.raises(UserError) as caught:
            list(eval_batches(source, settings(), batch=10))
        return str(caught.value)

    source = stream(tmp_path, "test")
    os.truncate(file, file.stat().st_size // 2)
    place = f"digits test, in {file.parent}"
    assert told().startswith(f"{place}: cannot be read (truncated record at ")
    file.unlink()
    assert f"{file}; No such file or directory" in told()
    with pytest.raises(UserError, match=f"^{file} is missing"):
        stream(tmp_path, "test")


def test_bad_examples_are_skipped_and_counted(damaged):
    for batch in train(damaged, batch=10, last=5, on_error="skip"):
        assert batch["bad"].tolist() == [i in (3, 7) for i in range(10)]
        # The next one stands for it.
        np.testing.assert_array_equal(batch["image"][3], batch["image"][4])
        np.testing.assert_array_equal(batch["image"][7], batch["image"][8])
        assert batch["label"].tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    (batch,) = eval_batches(damaged, settings(on_error="skip"), batch=12)
    assert batch["bad"].tolist() == [i in (3, 7) for i in range(12)]
    assert batch["mask"].tolist() == [i not in (3, 7, 10, 11) for i in range(12)]
