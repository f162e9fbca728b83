"""Batches: the same for any number of threads and processes, and each example once.

Bad examples are named, or skipped, replaced and counted.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from image_files import encode
from PIL import Image

from vt_flax.data import order
from vt_flax.data.batches import eval_batches, train_batches
from vt_flax.data.decoders import ClassDecoder
from vt_flax.data.source import Example, Source, cached
from vt_flax.errors import UserError
from vt_flax.training.config import default_config


class ArraySource(Source):
    """Images of noise, 12 x 10."""

    name = "arrays train"

    def __init__(self, count, classes=3):
        self.class_names = tuple(f"class {i}" for i in range(classes))
        self.images = np.random.default_rng(0).integers(
            0, 256, (count, 12, 10, 3), dtype=np.uint8
        )
        self.labels = np.arange(count) % classes
        self.files = [encode(image) for image in self.images]
        self.gone = set()

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        if self.gone & {*indices}:
            raise UserError(f"{self.name}: a file is gone")
        return [Example(self.files[i], int(self.labels[i])) for i in indices]

    def spoil(self, index, kind):
        if kind == "label":
            self.labels[index] = 3
        elif kind == "gone":
            self.gone.add(index)
        else:
            self.files[index] = {
                "truncated": self.files[index][:40],
                "empty": b"",
                "zeros": bytes(2000),
            }[kind]


def settings(**changes):
    config = default_config().data
    config.update({"image_size": 8, "crop_padding": 2, "workers": 1, **changes})
    return config


def train(source, *, seed=0, batch=20, first=0, last=3, indices=None, **changes):
    return list(
        train_batches(
            source,
            settings(**changes),
            seed=seed,
            batch=batch,
            first=first,
            last=last,
            local_indices=indices,
        )
    )


def evaluate(source, batch, indices=None, **changes):
    return list(
        eval_batches(source, settings(**changes), batch=batch, local_indices=indices)
    )


def joined(batches):
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


def assert_same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


def center(image, short=8):
    """Cuts a center crop of 8 out of an image of 12 x 10 that Pillow has resized."""
    height = round(12 * short / 10)
    resized = Image.fromarray(image).resize((short, height), Image.Resampling.BILINEAR)
    top, left = (height - 8) // 2, (short - 8) // 2
    return np.asarray(resized)[top : top + 8, left : left + 8].astype(int)


# A mesh of two hosts of a torus lays out a batch of 20 like this.
SCATTERED = ([0, 1, 2, 9, 10, 11, 16], [3, 4, 5, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19])


@pytest.mark.parametrize("crop", ["random_resized", "pad"])
def test_threads_processes_and_restarts_do_not_change_the_batches(crop):
    source = ArraySource(70)
    whole = train(source, train_crop=crop)
    assert whole[0]["image"].shape == (20, 8, 8, 3)
    assert whole[0]["image"].dtype == np.uint8 and whole[0]["label"].dtype == np.int32
    assert_same(whole, train(source, train_crop=crop, workers=3, readers=3, prefetch=7))
    assert_same(whole[2:], train(source, train_crop=crop, first=2))
    for indices in SCATTERED:
        share = train(source, train_crop=crop, indices=np.asarray(indices))
        assert_same(share, [{k: b[k][indices] for k in b} for b in whole])
    kept = cached(source)
    for _ in range(2):
        assert_same(whole, train(kept, train_crop=crop))
        source.gone = {*range(70)}  # nothing is read a second time


def test_seeds_and_epochs_have_orders_and_crops_of_their_own():
    source = ArraySource(50)
    a, b = train(source, last=1), train(source, last=1, seed=1)
    assert not np.array_equal(a[0]["label"], b[0]["label"])
    # One image alone: its order cannot differ, but its crops do.
    alone = joined(train(ArraySource(1), batch=10, crop_padding=4))
    assert len({image.tobytes() for image in alone["image"]}) > 15
    other = joined(train(ArraySource(1), batch=10, crop_padding=4, seed=1))
    assert not np.array_equal(alone["image"], other["image"])


def test_images_and_labels_are_the_source_s_in_the_run_s_order():
    source = ArraySource(7)
    rows = order.locate(range(10), 7, 3)
    batches = train(source, seed=3, batch=5, last=2, train_crop="center")
    found = joined(batches)
    np.testing.assert_array_equal(found["label"], source.labels[rows])
    expected = np.stack([center(source.images[i]) for i in rows])
    # Where a sum is exactly a half, Pillow rounds either way.
    assert np.abs(found["image"] - expected).max() <= 1


@pytest.mark.parametrize("count, batch, parts", [(13, 4, 2), (3, 8, 1), (33, 20, 0)])
def test_an_evaluation_sees_each_example_once(count, batch, parts):
    """All processes take part in each step, or the others would wait forever."""
    source = ArraySource(count)
    shares = np.split(np.arange(batch), parts) if parts else map(np.asarray, SCATTERED)
    steps = -(-count // batch)
    found = {
        "image": np.ones((steps, batch, 8, 8, 3), int),
        **{key: np.ones((steps, batch), int) for key in ("label", "mask", "bad")},
    }
    for indices in shares:
        share = evaluate(source, batch, indices)
        assert len(share) == steps
        for step, examples in enumerate(share):
            for key, values in examples.items():
                found[key][step, indices] = values
    found = {
        key: values.reshape(-1, *values.shape[2:]) for key, values in found.items()
    }
    assert found["mask"].tolist() == [i < count for i in range(steps * batch)]
    np.testing.assert_array_equal(found["label"][:count], source.labels)
    expected = np.stack([center(image) for image in source.images])
    assert np.abs(found["image"][:count] - expected).max() <= 1
    assert not found["image"][count:].any() and not found["label"][count:].any()
    assert not found["bad"].any()


def test_eval_resize_is_the_short_side_before_the_crop():
    source = ArraySource(2)
    (batch,) = evaluate(source, 2, eval_resize=11)
    assert np.abs(batch["image"][1] - center(source.images[1], 11)).max() <= 1


def test_a_reader_that_stops_early_leaves_no_threads():
    before = threading.active_count()
    batches = train_batches(
        ArraySource(50), settings(workers=3), seed=0, batch=20, first=0, last=10**9
    )
    next(batches)
    batches.close()
    assert threading.active_count() == before


PROGRAM = """
import time
import jax.numpy as jnp
import numpy as np
from image_files import encode
from vt_flax.data.batches import train_batches
from vt_flax.data.source import Example, Source
from vt_flax.training.config import default_config
jnp.zeros(1) + 1

class Slow(Source):
    name, class_names = "slow train", ("a",)
    files = [encode(np.zeros((9, 9, 3), np.uint8), form) for form in ("PNG", "GIF")]
    files.append(files[1][:30])  # rejected by Pillow, in a thread

    def __len__(self):
        return 300

    def read(self, indices):
        time.sleep(0.01 * len(indices))
        return [Example(self.files[i % 3], 0) for i in indices]

def batches():
    config = default_config().data
    config.update(image_size=8, on_error="skip", readers=3)
    return train_batches(Slow(), config, seed=0, batch=8, first=0, last=10**9)

closed, left, dropped = batches(), batches(), batches()
for some in (closed, left, dropped):
    print(next(some)["bad"].sum() > 0)
closed.close()
del dropped
print("done")
"""


@pytest.mark.slow
def test_a_process_ends_in_silence_amid_reading():
    """Batches that are closed, still held and dropped, with unreadable examples."""
    # The tests' own setting would hide what TensorFlow logs.
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    expected = (0, "True\nTrue\nTrue\ndone\n", "")
    assert (done.returncode, done.stdout, done.stderr) == expected


# Bad examples.

KINDS = {
    "truncated": "example {}: not a readable image",
    "empty": "example {}: not a readable image",
    "zeros": "example {}: not a readable image",
    "label": "example {}: label 3 is outside the 3 classes",
    "gone": "a file is gone",
}


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_a_bad_example_is_named_and_ends_the_run(kind):
    """After the batches before it."""
    source = ArraySource(24)
    source.spoil(13, kind)
    message = f"arrays train.*{KINDS[kind].format(13)}"
    with pytest.raises(UserError, match=message):
        train(source)
    batches = eval_batches(source, settings(), batch=10)
    assert next(batches)["mask"].all()
    with pytest.raises(UserError, match=message):
        next(batches)


def test_skipping_replaces_and_marks():
    """Neighbors in storage and the last one, of every kind; shares agree."""
    source = ArraySource(24)
    bad = {4: "truncated", 5: "empty", 6: "zeros", 15: "label", 23: "gone"}
    for index, kind in bad.items():
        source.spoil(index, kind)
    replacement = {4: 7, 5: 7, 6: 7, 15: 16, 23: 0}
    rows = order.locate(range(48), 24, 0)  # two epochs
    options = {"batch": 16, "on_error": "skip", "train_crop": "center"}
    whole = train(source, **options)
    found = joined(whole)
    stood = [replacement.get(i, i) for i in rows.tolist()]
    assert found["bad"].tolist() == [i in bad for i in rows.tolist()]
    np.testing.assert_array_equal(found["label"], source.labels[stood])
    expected = np.stack([center(source.images[i]) for i in stood])
    assert np.abs(found["image"] - expected).max() <= 1
    # Whatever the processes and restarts.
    for indices in np.split(np.arange(16), 2):
        share = train(source, indices=indices, **options)
        assert_same(share, [{k: b[k][indices] for k in b} for b in whole])
    assert_same(whole[1:], train(source, first=1, **options))

    found = joined(evaluate(source, 10, on_error="skip"))
    assert found["mask"].tolist() == [i < 24 and i not in bad for i in range(30)]
    assert found["bad"].tolist() == [i in bad for i in range(30)]


@pytest.mark.parametrize("kind", ["zeros", "gone"])
def test_nothing_readable_at_all_ends_an_endless_run(kind):
    source = ArraySource(24)
    for index in range(24):
        source.spoil(index, kind)
    with pytest.raises(UserError, match=KINDS[kind].format(r"\d+")):
        train(source, last=10**7)
    with pytest.raises(UserError, match="24 examples in a row are bad; the last: arra"):
        train(source, last=10**7, on_error="skip")
    assert not any(b["mask"].any() for b in evaluate(source, 10, on_error="skip"))


def test_a_slow_consumer_does_not_end_the_reading(monkeypatch):
    """However little is consumed, all examples come from tf.data."""
    monkeypatch.setattr(ClassDecoder, "decode_alone", None)
    config = settings(prefetch=0, readers=3)
    batches = train_batches(
        ArraySource(24), config, seed=0, batch=1, first=5, last=10**7
    )
    with contextlib.closing(batches):
        next(batches)
        time.sleep(0.5)
        for _ in range(100):
            next(batches)
