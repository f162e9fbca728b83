"""Batches: the same for any number of threads and processes, and each example once."""

import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from image_files import encode
from PIL import Image

from vt_flax.data import order
from vt_flax.data.batches import eval_batches, train_batches
from vt_flax.data.source import Example, RandomAccessSource
from vt_flax.data.sources import open_source
from vt_flax.errors import UserError
from vt_flax.training.config import default_config


class ArraySource(RandomAccessSource):
    """Images of noise, 12 x 10."""

    name = "arrays train"

    def __init__(self, count, classes=3):
        self.class_names = tuple(f"class {i}" for i in range(classes))
        self.images = np.random.default_rng(0).integers(
            0, 256, (count, 12, 10, 3), dtype=np.uint8
        )
        self.labels = np.arange(count) % classes
        self.files = [encode(image) for image in self.images]

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return [Example(self.files[i], int(self.labels[i])) for i in indices]


def settings(**changes):
    config = default_config().data
    config.image_size = 8
    config.crop_padding = 2
    config.workers = 1
    config.update(changes)
    return config


def train(source, config=None, *, seed=0, batch=20, first=0, last=5, **options):
    return list(
        train_batches(
            source,
            config or settings(),
            seed=seed,
            batch=batch,
            first=first,
            last=last,
            **options,
        )
    )


def assert_near(image, expected):
    """Within a level: where a sum is exactly a half, Pillow rounds either way."""
    assert np.abs(image.astype(int) - expected).max() <= 1


def assert_same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


# Training.


@pytest.mark.parametrize("crop", ["random_resized", "pad", "center"])
def test_threads_do_not_change_the_batches(crop):
    """40 images make three tasks, which may end in any order."""
    source = ArraySource(70)
    one = train(source, settings(train_crop=crop), batch=40)
    three = train(source, settings(train_crop=crop, workers=3), batch=40)
    assert [b["image"].shape for b in one] == [(40, 8, 8, 3)] * 5
    assert one[0]["image"].dtype == np.uint8 and one[0]["label"].dtype == np.int32
    assert_same(one, three)


def test_reading_ahead_does_not_change_the_batches():
    source = ArraySource(30)
    usual = train(source)
    for prefetch in (0, 7):
        assert_same(usual, train(source, settings(prefetch=prefetch)))


@pytest.mark.parametrize("crop, process_count", [("random_resized", 2), ("pad", 4)])
def test_processes_make_up_the_global_batch(crop, process_count):
    source, config = ArraySource(50), settings(train_crop=crop)
    shares = [
        train(source, config, process_index=process_index, process_count=process_count)
        for process_index in range(process_count)
    ]
    joined = [
        {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
        for batches in zip(*shares, strict=True)
    ]
    assert shares[0][0]["label"].shape == (20 // process_count,)
    assert_same(joined, train(source, config))


# As a mesh lays out two hosts of a torus.
SCATTERED = ([0, 1, 2, 9, 10, 11, 16], [3, 4, 5, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19])


def test_rows_that_are_no_neighbors_make_up_the_global_batch():
    source, config = ArraySource(50), settings(train_crop="random_resized")
    whole = train(source, config)
    for process_index, indices in enumerate(SCATTERED):
        share = train(
            source,
            config,
            process_index=process_index,
            process_count=2,
            local_indices=np.asarray(indices),
        )
        assert_same(share, [{k: b[k][indices] for k in b} for b in whole])


def test_a_restart_goes_on_with_the_same_batches():
    source, config = ArraySource(50), settings(train_crop="random_resized")
    whole = train(source, config)
    for first in (1, 4, 5):
        assert_same(whole[first:], train(source, config, first=first))


def test_another_seed_has_other_images_and_other_crops():
    source = ArraySource(50)
    a, b = train(source), train(source, seed=1)
    assert not np.array_equal(a[0]["label"], b[0]["label"])
    # One image alone: its order cannot differ, but its crops do.
    alone = ArraySource(1)
    a = train(alone, settings(train_crop="random_resized"), batch=4)
    b = train(alone, settings(train_crop="random_resized"), batch=4, seed=1)
    assert not np.array_equal(a[0]["image"], b[0]["image"])


def test_every_epoch_and_example_has_a_crop_of_its_own():
    batches = train(ArraySource(1), settings(crop_padding=4), batch=1, last=30)
    assert len({b["image"].tobytes() for b in batches}) > 15


def test_images_and_labels_are_the_source_s_in_the_run_s_order():
    """Center crops of 8 from images of width 10 are cut by hand, in order."""
    source = ArraySource(7)
    config = settings(train_crop="center")
    rows = order.locate(range(10), 7, 3)
    for k, batch in enumerate(train(source, config, seed=3, batch=5, last=2)):
        for i, index in enumerate(rows[5 * k : 5 * k + 5]):
            image = Image.fromarray(source.images[index])
            # 12 x 8 / 10 = 9.6 rows, rounded.
            resized = image.resize((8, 10), Image.Resampling.BILINEAR)
            assert_near(batch["image"][i], np.asarray(resized)[1:9])
            assert batch["label"][i] == source.labels[index]


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
from vt_flax.data.batches import eval_batches, train_batches
from vt_flax.data.source import Example, RandomAccessSource
from vt_flax.training.config import default_config
jnp.zeros(1) + 1

class Slow(RandomAccessSource):
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


# Evaluation.


def evaluate(source, batch, process_index=0, process_count=1, **changes):
    return list(
        eval_batches(
            source,
            settings(**changes),
            batch=batch,
            process_index=process_index,
            process_count=process_count,
        )
    )


def index_of(source):
    """Returns what tells by its center crop which of 12 x 10 images one is."""
    crops = np.stack(
        [
            Image.fromarray(image).resize((8, 10), Image.Resampling.BILINEAR)
            for image in source.images
        ]
    )[:, 1:9].astype(int)

    def find(image):
        gaps = np.abs(crops - image).max((1, 2, 3))
        assert np.sort(gaps)[0] <= 1 and (len(gaps) == 1 or np.sort(gaps)[1] > 20)
        return int(np.argmin(gaps))

    return find


@pytest.mark.parametrize("count", [20, 33])
def test_rows_of_an_evaluation_that_are_no_neighbors(count):
    source = ArraySource(count)
    whole = evaluate(source, 20)
    for process_index, indices in enumerate(SCATTERED):
        share = list(
            eval_batches(
                source,
                settings(),
                batch=20,
                process_index=process_index,
                process_count=2,
                local_indices=np.asarray(indices),
            )
        )
        assert_same(share, [{k: b[k][indices] for k in b} for b in whole])


@pytest.mark.parametrize(
    "count,batch,process_count",
    [(12, 4, 1), (13, 4, 1), (3, 8, 1), (13, 4, 2), (17, 8, 2), (9, 8, 4), (40, 20, 1)],
)
def test_each_example_is_seen_once(count, batch, process_count):
    source = ArraySource(count)
    index = index_of(source)
    shares = [
        evaluate(source, batch, process_index, process_count)
        for process_index in range(process_count)
    ]
    # All processes take part in each step, or the others would wait for ever.
    assert {len(share) for share in shares} == {-(-count // batch)}
    seen = []
    for batches in zip(*shares, strict=True):
        for b in batches:
            assert b["image"].shape == (batch // process_count, 8, 8, 3)
            assert b["mask"].dtype == bool and b["label"].dtype == np.int32
            for image, label, real in zip(
                b["image"], b["label"], b["mask"], strict=True
            ):
                if real:
                    seen.append(index(image))
                    assert label == source.labels[seen[-1]]
                else:
                    assert not image.any() and label == 0
    assert seen == list(range(count))


def test_the_last_batch_is_filled_up():
    masks = [b["mask"].tolist() for b in evaluate(ArraySource(6), 4)]
    assert masks == [[True] * 4, [True, True, False, False]]
    masks = [b["mask"].tolist() for b in evaluate(ArraySource(5), 4, 1, 2)]
    assert masks == [[True, True], [False, False]]


def test_threads_do_not_change_an_evaluation():
    source = ArraySource(45)
    assert_same(evaluate(source, 40), evaluate(source, 40, workers=3))


def test_eval_resize_is_the_short_side_before_the_crop():
    """The short side 10 is 11 then, and 13.2 rows are 13."""
    source = ArraySource(2)
    (batch,) = evaluate(source, 2, eval_resize=11)
    resized = Image.fromarray(source.images[1]).resize(
        (11, 13), Image.Resampling.BILINEAR
    )
    assert_near(batch["image"][1], np.asarray(resized)[2:10, 1:9])


# Errors.


@pytest.fixture
def folder(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(
    "bad, workers", [(b"", 1), (b"no image", 3), ("truncated", 1), ("truncated", 3)]
)
def test_an_unreadable_image_is_named(folder, bad, workers):
    path = folder / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:50] if bad == "truncated" else bad)
    source = open_source(f"folder:{folder}", "all")
    for run in (
        lambda: evaluate(source, 7, workers=workers),
        lambda: train(source, settings(workers=workers)),
    ):
        with pytest.raises(UserError, match="not a readable image") as caught:
            run()
        assert str(path) in str(caught.value)


def test_a_file_that_is_gone_is_named_and_no_other(folder):
    source = open_source(f"folder:{folder}", "all")
    gone = source.describe(3)
    pathlib.Path(gone).unlink()
    with pytest.raises(UserError) as caught:
        evaluate(source, 8)
    message = str(caught.value)
    assert gone in message
    assert all(source.describe(i) not in message for i in range(20) if i != 3)


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_a_label_outside_the_classes_is_named(label):
    source = ArraySource(9)
    source.labels[5] = label
    message = f"arrays train, example 5: label {label} is outside the 3 classes"
    with pytest.raises(UserError, match=message):
        evaluate(source, 4)
    with pytest.raises(UserError, match=message):
        train(source)


def test_batches_before_an_error_are_still_given():
    source = ArraySource(9)
    source.labels[8] = 7
    batches = eval_batches(source, settings(), batch=4)
    assert next(batches)["mask"].all() and next(batches)["mask"].all()
    with pytest.raises(UserError, match="example 8"):
        next(batches)
