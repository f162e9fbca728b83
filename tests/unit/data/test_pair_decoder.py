"""Images and masks brought to a canvas, and pairs that nothing can be made of."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from image_files import encode
from pair_trees import draw_image, draw_labels, with_palette
from PIL import Image

from vt_flax.data import order
from vt_flax.data.batches import eval_batches, train_batches
from vt_flax.data.decoders import PairDecoder
from vt_flax.data.source import Example, RandomAccessSource
from vt_flax.errors import UserError
from vt_flax.training.config import default_config

COUNT = 12
BAD = 4
HEIGHT, WIDTH = 18, 22
CANVAS = (20, 24)
# Stored value 5 is class 0, 3 is class 1, 7 has no class; all others are mistakes.
MAP = np.full(256, 254, np.uint8)
MAP[[5, 3, 7, 255]] = 0, 1, 255, 255


class Pairs(RandomAccessSource):
    """Images of one level each, seven times their index, and blocks of labels."""

    name, class_names, label_map = "pairs train", ("a", "b"), MAP

    def __init__(self, count=COUNT):
        shades = [np.full((HEIGHT, WIDTH, 3), 7 * i, np.uint8) for i in range(count)]
        self.masks = [
            draw_labels(i, WIDTH, HEIGHT, [5, 3, 7, 255]) for i in range(count)
        ]
        self.pairs = [
            [encode(shade), encode(mask)]
            for shade, mask in zip(shades, self.masks, strict=True)
        ]

    def __len__(self):
        return len(self.pairs)

    def read(self, indices):
        return [Example(*self.pairs[i]) for i in indices]

    def fetch(self, indices):
        records = [tf.io.serialize_tensor(self.pairs[i]).numpy() for i in indices]
        return records, [0] * len(records), [1] * len(records)

    def parse(self, record, label):
        return tuple(tf.unstack(tf.io.parse_tensor(record, tf.string), 2))


def decode(example, canvas, *, shrink):
    decoder = PairDecoder(Pairs(), canvas, shrink=shrink)
    item = decoder.decode_alone(example, (0, 0), "pairs train, example 9")
    assert {k: (v.shape, v.dtype) for k, v in item.items()} == decoder.fields
    return item


def pair(height, width, form="PNG"):
    image = draw_image(height, width, height)
    mask = draw_labels(width, width, height, [5, 3, 7, 255])
    return Example(encode(image, form), encode(mask)), np.asarray(image), mask


@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("height, width", [(18, 22), (20, 24), (4, 24), (20, 1)])
def test_a_small_example_is_padded(height, width, shrink):
    if height * width < 30:  # room for all labels
        mask = np.resize(np.asarray([5, 3, 7, 255], np.uint8), (height, width))
        image = np.asarray(draw_image(1, width, height))
        example = Example(encode(image), encode(mask))
    else:
        example, image, mask = pair(height, width)
    found = decode(example, CANVAS, shrink=shrink)
    assert found["size"].tolist() == [height, width]
    np.testing.assert_array_equal(found["image"][:height, :width], image)
    assert not found["image"][height:].any() and not found["image"][:, width:].any()
    meaning = {5: 0, 3: 1, 7: 255, 255: 255}
    expected = np.vectorize(meaning.get)(mask)
    np.testing.assert_array_equal(found["label"][:height, :width], expected)
    assert (found["label"][height:] == 255).all()
    assert (found["label"][:, width:] == 255).all()


def without_ties(length, target):
    """Pixels of a resized axis whose centre lies on no border between two pixels."""
    return (2 * np.arange(target) + 1) * length % (2 * target) != 0


@pytest.mark.parametrize(
    "height, width, target",
    [
        (61, 47, (20, 15)),
        (21, 24, (20, 23)),
        (19, 100, (5, 24)),
        (3, 300, (1, 24)),
        (500, 4, (20, 1)),
        (40, 48, (20, 24)),
    ],
)
def test_a_large_example_is_shrunk_in_training(height, width, target):
    example, image, mask = pair(height, width)
    found = decode(example, CANVAS, shrink=True)
    assert tuple(found["size"]) == target
    a, b = target
    resize = Image.Resampling
    expected = Image.fromarray(image).resize((b, a), resize.BILINEAR)
    difference = found["image"][:a, :b].astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1
    assert not found["image"][a:].any() and not found["image"][:, b:].any()
    nearest = np.asarray(Image.fromarray(mask).resize((b, a), resize.NEAREST))
    places = np.ix_(without_ties(height, a), without_ties(width, b))
    np.testing.assert_array_equal(found["label"][:a, :b][places], MAP[nearest][places])
    # Classes are not mixed, on ties neither.
    assert set(np.unique(found["label"])) <= {0, 1, 255}
    assert (found["label"][a:] == 255).all() and (found["label"][:, b:] == 255).all()


@pytest.mark.parametrize("height, width", [(21, 24), (20, 25), (100, 100)])
def test_a_large_example_is_refused_in_evaluation(height, width):
    example, _, _ = pair(height, width)
    with pytest.raises(UserError) as caught:
        decode(example, CANVAS, shrink=False)
    message = str(caught.value)
    assert "pairs train, example 9" in message and "\n" not in message
    assert f"{height} x {width}" in message and "segmentation.eval_canvas" in message


def test_a_jpeg_is_decoded_as_pillow_does():
    example, image, _ = pair(HEIGHT, WIDTH, "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(example.image)))
    found = decode(example, CANVAS, shrink=False)["image"][:HEIGHT, :WIDTH]
    assert np.abs(found.astype(int) - expected).max() <= 1


# -------------------------------------------------------------------------- bad inputs


def four_bits(mask):
    """A grey PNG of four bits: a palette one whose header says grey."""
    content = bytearray(encode(with_palette(mask), bits=4))
    assert content[24:26] == b"\x04\x03"
    at = content.index(b"PLTE") - 4
    length = struct.unpack(">I", content[at : at + 4])[0]
    del content[at : at + 12 + length]
    content[25] = 0
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def damaged(image, mask, kind):
    """Returns a bad image and mask of a good pair."""
    values = np.array(Image.open(io.BytesIO(mask)))
    grey = np.where(values == 5, 0, 255).astype(np.uint8)
    if kind.startswith("image"):
        jpeg = encode(Image.open(io.BytesIO(image)), "JPEG")
        content = {
            "image cut": image[:40],
            "image jpeg cut": jpeg[: len(jpeg) // 2],
            "image empty": b"",
            "image text": b"<html>" * 9,
        }[kind]
        return content, mask
    values[2, 3] = 4
    return image, {
        "label": lambda: encode(values),
        "size": lambda: encode(np.full((HEIGHT, WIDTH - 1), 5, np.uint8)),
        "turned": lambda: encode(np.full((WIDTH, HEIGHT), 5, np.uint8)),
        "rgb": lambda: encode(Image.fromarray(grey).convert("RGB")),
        "grey alpha": lambda: encode(Image.fromarray(grey).convert("LA")),
        "palette": lambda: encode(with_palette(grey)),
        # High bytes of these are labels too.
        "16 bits": lambda: encode(np.full((HEIGHT, WIDTH), 5 * 256 + 3, np.uint16)),
        "1 bit": lambda: encode(np.ones((HEIGHT, WIDTH), bool)),
        "4 bits": lambda: four_bits(np.full((HEIGHT, WIDTH), 15, np.uint8)),
        "jpeg mask": lambda: encode(np.full((HEIGHT, WIDTH), 255, np.uint8), "JPEG"),
        "mask cut": lambda: mask[:-30],
        "mask short": lambda: mask[:20],
        "mask empty": lambda: b"",
    }[kind]()


KINDS = {
    "label": "label 4 is outside the 2 classes of the dataset",
    "size": "the image has 18 x 22 pixels, its mask 18 x 21",
    "turned": "the image has 18 x 22 pixels, its mask 22 x 18",
    "rgb": "not a readable mask .*RGB, 8 bits",
    "grey alpha": "not a readable mask .*gray.alpha, 8 bits",
    "palette": "not a readable mask .*palette, 8 bits",
    "16 bits": "not a readable mask .*gray, 16 bits",
    "1 bit": "not a readable mask .*gray, 1 bits",
    "4 bits": "not a readable mask .*gray, 4 bits",
    "jpeg mask": "not a readable mask .*must be a PNG",
    "mask cut": "not a readable mask .*PNG",
    "mask short": "not a readable mask .*cut off",
    "mask empty": "not a readable mask .*empty",
    "image cut": "not a readable image",
    "image jpeg cut": "not a readable image",
    "image empty": "not a readable image .it is empty",
    "image text": "not a readable image",
}


def settings(on_error):
    config = default_config().data
    config.update({"workers": 2, "on_error": on_error})
    return config


def train(source, on_error="raise"):
    decoder = PairDecoder(source, CANVAS, shrink=True)
    return list(
        train_batches(
            source,
            settings(on_error),
            seed=3,
            batch=6,
            first=0,
            last=len(source) // 6,
            decoder=decoder,
        )
    )


def evaluate(source, on_error="raise"):
    decoder = PairDecoder(source, CANVAS, shrink=False)
    config = settings(on_error)
    return list(eval_batches(source, config, batch=8, decoder=decoder))


def joined(batches):
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


def are_shades(source, found, indices):
    for image, label, size, index in zip(
        found["image"], found["label"], found["size"], indices, strict=True
    ):
        assert size.tolist() == [HEIGHT, WIDTH]
        assert (image[:HEIGHT, :WIDTH] == 7 * index).all()
        expected = MAP[source.masks[index]]
        np.testing.assert_array_equal(label[:HEIGHT, :WIDTH], expected)


def test_good_pairs_come_as_they_are():
    source = Pairs()
    found = joined(train(source))
    are_shades(source, found, order.locate(np.arange(COUNT), COUNT, 3))
    assert not found["bad"].any()
    found = joined(evaluate(source))
    assert found["mask"].tolist() == [True] * COUNT + [False] * 4
    are_shades(source, {k: v[:COUNT] for k, v in found.items()}, range(COUNT))
    assert not found["bad"].any() and not found["size"][COUNT:].any()


@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_named(kind, shrink):
    example = Example(*damaged(*Pairs().pairs[BAD], kind))
    with pytest.raises(UserError, match=KINDS[kind]) as caught:
        decode(example, CANVAS, shrink=shrink)
    message = str(caught.value)
    assert message.startswith("pairs train, example 9: ")
    assert "\n" not in message and "BytesIO" not in message


@pytest.mark.parametrize("kind", ["label", "mask cut"])
def test_by_default_it_ends_the_run(kind):
    """What is found after decoding, and what cannot be decoded."""
    source = Pairs()
    source.pairs[BAD] = damaged(*source.pairs[BAD], kind)
    for run in (train, evaluate):
        message = f"^pairs train, example {BAD}: .*{KINDS[kind]}"
        with pytest.raises(UserError, match=message) as caught:
            run(source)
        assert "\n" not in str(caught.value)


def test_skipping_replaces_and_marks():
    """One of each kind, and a good one after it."""
    source = Pairs(36)  # room for all kinds, in whole batches of 6
    count, bad = len(source), 1 + 2 * np.arange(len(KINDS))
    for index, kind in zip(bad, KINDS, strict=True):
        source.pairs[index] = damaged(*source.pairs[index], kind)
    found = joined(train(source, "skip"))
    indices = order.locate(np.arange(count), count, 3)
    np.testing.assert_array_equal(found["bad"], np.isin(indices, bad))
    are_shades(source, found, np.where(found["bad"], indices + 1, indices))

    found = joined(evaluate(source, "skip"))
    places = np.arange(len(found["mask"]))
    skipped = np.isin(places, bad)
    np.testing.assert_array_equal(found["mask"], (places < count) & ~skipped)
    np.testing.assert_array_equal(found["bad"], skipped)
    kept = found["mask"]
    are_shades(source, {k: v[kept] for k, v in found.items()}, places[kept])
    assert not found["size"][bad].any()


def test_too_large_ones_are_refused_or_skipped_in_evaluation_alone():
    source = Pairs()
    source.pairs[BAD] = [x for x in vars(pair(30, 40)[0]).values()]
    assert not joined(train(source))["bad"].any()
    with pytest.raises(
        UserError, match="example 4: the image has 30 x 40 pixels.*eval_canvas"
    ):
        evaluate(source)
    found = joined(evaluate(source, "skip"))
    assert np.flatnonzero(found["bad"]).tolist() == [BAD]
    assert not found["mask"][BAD] and found["mask"].sum() == COUNT - 1
