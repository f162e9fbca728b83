"""Damaged files and wrong labels: named, or skipped, replaced and counted."""

import contextlib
import pathlib
import time

import numpy as np
import pytest
from image_files import encode
from PIL import Image

from vt_flax.data import order
from vt_flax.data.batches import eval_batches, train_batches
from vt_flax.data.decoders import ClassDecoder
from vt_flax.data.source import Example, RandomAccessSource
from vt_flax.data.sources import open_source
from vt_flax.errors import UserError
from vt_flax.training.config import default_config

pytestmark = pytest.mark.slow

COUNT = 24


class Files(RandomAccessSource):
    """Images of one level each, ten times their index."""

    name, class_names = "files train", ("a", "b", "c")

    def __init__(self):
        shades = [np.full((9, 9, 3), 10 * i, np.uint8) for i in range(COUNT)]
        self.files = [encode(shade) for shade in shades]
        self.labels = [i % 3 for i in range(COUNT)]
        self.gone = set()

    def __len__(self):
        return COUNT

    def read(self, indices):
        if self.gone & {*indices}:
            raise UserError(f"{self.name}: a file is gone")
        return [Example(self.files[i], self.labels[i]) for i in indices]


def damage(source, index, kind):
    if kind == "truncated":
        source.files[index] = source.files[index][:40]
    elif kind == "empty":
        source.files[index] = b""
    elif kind == "zeros":
        source.files[index] = bytes(2000)
    elif kind == "label":
        source.labels[index] = 3
    else:
        source.gone.add(index)


KINDS = {
    "truncated": "example {}: not a readable image",
    "empty": "example {}: not a readable image .it is empty",
    "zeros": "example {}: not a readable image .2000 zero bytes",
    "label": "example {}: label 3 is outside the 3 classes",
    "gone": "a file is gone",
}


def settings(**changes):
    config = default_config().data
    config.image_size = 9
    config.update({"train_crop": "center", "workers": 2, **changes})
    return config


def train(
    source,
    *,
    batch=8,
    first=0,
    last=6,
    seed=0,
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


def evaluate(source, batch=10, **changes):
    return list(eval_batches(source, settings(**changes), batch=batch))


@pytest.mark.parametrize(
    "kind, index",
    [
        *((kind, 13) for kind in KINDS),
        *((kind, place) for kind in ("label", "gone") for place in (0, COUNT - 1)),
    ],
)
def test_by_default_it_is_named_and_ends_the_run(kind, index):
    source = Files()
    damage(source, index, kind)
    message = f"files train.*{KINDS[kind].format(index)}"
    with pytest.raises(UserError, match=message):
        train(source)
    with pytest.raises(UserError, match=message):
        evaluate(source)


@pytest.mark.parametrize("kind", KINDS)
def test_skipping_replaces_and_marks(kind):
    """Neighbors in storage, the last one and a whole batch are bad."""
    source = Files()
    bad = {4, 5, 6, COUNT - 1}
    for index in bad:
        damage(source, index, kind)
    replacement = {4: 7, 5: 7, 6: 7, COUNT - 1: 0}
    rows = order.locate(range(48), COUNT, 0)
    shades, labels, marks = [], [], []
    for batch in train(source, on_error="skip"):
        assert (batch["image"] == batch["image"][:, :1, :1, :1]).all()
        shades += batch["image"][:, 0, 0, 0].tolist()
        labels += batch["label"].tolist()
        marks += batch["bad"].tolist()
    stood = [replacement.get(i, i) for i in rows.tolist()]
    assert shades == [10 * i for i in stood]
    assert labels == [i % 3 for i in stood]
    assert marks == [i in bad for i in rows.tolist()]
    # Two epochs.
    assert sum(marks) == 8


@pytest.mark.parametrize("process_count", [2, 4])
def test_what_stands_for_it_does_not_depend_on_processes_or_restarts(process_count):
    source = Files()
    for index in (1, 2, 9, 17):
        damage(source, index, "zeros")
    crop = {"on_error": "skip", "train_crop": "pad"}
    whole = train(source, **crop)
    shares = [
        train(source, process_index=p, process_count=process_count, **crop)
        for p in range(process_count)
    ]
    for step, expected in enumerate(whole):
        for key, value in expected.items():
            joined = np.concatenate([share[step][key] for share in shares])
            np.testing.assert_array_equal(joined, value)
    for expected, found in zip(whole[4:], train(source, first=4, **crop), strict=True):
        np.testing.assert_array_equal(found["image"], expected["image"])


def test_an_evaluation_leaves_them_out():
    source = Files()
    bad = {0, 11, 12, 23}
    for index in bad:
        damage(source, index, "truncated")
    batches = evaluate(source, on_error="skip")
    mask = np.concatenate([b["mask"] for b in batches])
    marks = np.concatenate([b["bad"] for b in batches])
    assert mask.tolist() == [i < COUNT and i not in bad for i in range(30)]
    assert marks.tolist() == [i in bad for i in range(30)]


def test_nothing_readable_at_all():
    source = Files()
    for index in range(COUNT):
        damage(source, index, "zeros")
    with pytest.raises(UserError, match="24 examples in a row are bad; the last: file"):
        train(source, on_error="skip")
    assert not any(b["mask"].any() for b in evaluate(source, on_error="skip"))


@pytest.mark.parametrize("kind", ["zeros", "label", "gone"])
def test_an_endless_run_of_bad_examples_ends_at_once(kind):
    source = Files()
    for index in range(COUNT):
        damage(source, index, kind)
    with pytest.raises(UserError, match=KINDS[kind].format(r"\d+")):
        train(source, last=10**7)
    with pytest.raises(UserError, match="24 examples in a row are bad"):
        train(source, last=10**7, on_error="skip")


def test_a_slow_consumer_does_not_end_the_reading(monkeypatch):
    """However little is consumed, all examples come from tf.data."""
    monkeypatch.setattr(ClassDecoder, "decode_alone", None)
    for batch, prefetch in ((1, 0), (8, 2), (8, 9)):
        config = settings(prefetch=prefetch, readers=3)
        batches = train_batches(
            Files(), config, seed=0, batch=batch, first=5, last=10**7
        )
        with contextlib.closing(batches):
            for _ in range(2):
                next(batches)
                time.sleep(0.5)
            for _ in range(100):
                next(batches)


# Real photographs.


@pytest.fixture
def folder(real_data, tmp_path) -> pathlib.Path:
    """Twelve photographs in two classes."""
    files = sorted((real_data / "imagenet_samples").glob("*/*.JPEG"))[:12]
    for i, file in enumerate(files):
        path = tmp_path / "ab"[i % 2] / f"{i:02}.JPEG"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("share", [0.2, 0.7, 0.97])
def test_a_truncated_photograph_is_named_whatever_its_crop(share, folder):
    path = folder / "b" / "05.JPEG"
    encoded = path.read_bytes()
    path.write_bytes(encoded[: int(share * len(encoded))])
    source = open_source(f"folder:{folder}", "all")
    for seed in range(2):
        with pytest.raises(UserError, match=r"05.JPEG: not a readable.*truncated"):
            train(
                source,
                seed=seed,
                batch=12,
                last=1,
                train_crop="random_resized",
            )


def test_photographs_of_every_kind_are_read(folder):
    """ImageNet has grey and CMYK JPEGs, and a PNG that is called JPEG."""
    image = Image.open(folder / "a" / "00.JPEG").convert("RGB")
    image.convert("L").save(folder / "a" / "grey.JPEG")
    image.convert("CMYK").save(folder / "a" / "cmyk.JPEG")
    image.save(folder / "a" / "png.JPEG", "PNG")
    image.save(folder / "a" / "progressive.JPEG", progressive=True)
    (folder / "a" / "tail.JPEG").write_bytes(
        (folder / "a" / "00.JPEG").read_bytes() + b"some camera's own data"
    )
    source = open_source(f"folder:{folder}", "all")
    names = [pathlib.Path(source.describe(i)).stem for i in range(len(source))]
    (batch,) = evaluate(source, batch=len(source), image_size=64)
    assert batch["mask"].all()
    found = dict(zip(names, batch["image"].astype(int), strict=True))
    for kind in ("png", "progressive", "tail"):
        assert np.abs(found[kind] - found["00"]).mean() < 3
    grey = found["grey"]
    assert (grey == grey[..., :1]).all()
    luma = found["00"] @ np.asarray([0.299, 0.587, 0.114])
    assert np.abs(grey[..., 0] - luma).mean() < 3
    # Ink and back costs more.
    assert np.abs(found["cmyk"] - found["00"]).mean() < 6
    train(source, batch=len(source), last=2, train_crop="random_resized")
