"""Images and masks brought to a canvas, and pairs that nothing can be made of."""

import io

import numpy as np
import pytest
from image_files import encode, png
from pair_trees import draw_image, draw_labels, with_palette
from PIL import Image

from vt_flax.data import order
from vt_flax.data.batches import eval_batches, train_batches
from vt_flax.data.decoders import PairDecoder
from vt_flax.data.source import Example, Source
from vt_flax.errors import UserError
from vt_flax.training.config import default_config

COUNT = 12
BAD = 4
HEIGHT, WIDTH = 18, 22
CANVAS = (20, 24)
# Stored value 5 is class 0, 3 is class 1, 7 has no class; all others are mistakes.
MAP = np.full(256, 254, np.uint8)
MAP[[5, 3, 7, 255]] = 0, 1, 255, 255


class Pairs(Source):
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
@pytest.mark.parametrize("height, width", [(18, 22), (20, 24), (4, 24)])
def test_a_small_example_is_padded(height, width, shrink):
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


@pytest.mark.parametrize(
    "height, width, target", [(61, 47, (20, 15)), (21, 21, (20, 20)), (3, 300, (1, 24))]
)
def test_a_large_example_is_shrunk_in_training(height, width, target):
    example, image, mask = pair(height, width)
    found = decode(example, CANVAS, shrink=True)
    assert tuple(found["size"]) == target
    a, b = target
    # Bilinear and antialiased, in float64: a triangle as wide as the reduction.
    scaled = image.astype(float)
    for axis, (old, new) in enumerate(zip(image.shape, target, strict=False)):
        at = (np.arange(new)[:, None] + 0.5) * old / new
        weights = 1 - np.abs(np.arange(old) + 0.5 - at) * min(1, new / old)
        weights = np.maximum(weights, 0)
        weights /= weights.sum(1, keepdims=True)
        scaled = np.moveaxis(np.tensordot(weights, scaled, (1, axis)), 0, axis)
    assert np.abs(found["image"][:a, :b] - scaled).max() <= 1
    assert not found["image"][a:].any() and not found["image"][:, b:].any()
    rows = ((np.arange(a) + 0.5) * height / a).astype(int)
    columns = ((np.arange(b) + 0.5) * width / b).astype(int)
    nearest = MAP[mask[np.ix_(rows, columns)]]
    np.testing.assert_array_equal(found["label"][:a, :b], nearest)
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


# Bad pairs.


def damaged(image, mask, kind):
    """Returns a bad image and mask of a good pair."""
    values = np.array(Image.open(io.BytesIO(mask)))
    if kind.startswith("image"):
        return {"image cut": image[:40], "image text": b"<html>" * 9}[kind], mask
    values[2, 3] = 4
    return image, {
        "label": lambda: encode(values),
        "size": lambda: encode(np.full((HEIGHT, WIDTH - 1), 5, np.uint8)),
        "rgb": lambda: encode(Image.fromarray(values).convert("RGB")),
        "palette": lambda: encode(with_palette(values)),
        # High bytes of these are labels too.
        "16 bits": lambda: encode(np.full((HEIGHT, WIDTH), 5 * 256 + 3, np.uint16)),
        "4 bits": lambda: png(np.full((HEIGHT, WIDTH, 1), 15), 4, 0),
        "jpeg mask": lambda: encode(np.full((HEIGHT, WIDTH), 255, np.uint8), "JPEG"),
        "mask cut": lambda: mask[:-30],
    }[kind]()


KINDS = {
    "label": "label 4 is outside the 2 classes of the dataset",
    "size": "the image has 18 x 22 pixels, its mask 18 x 21",
    "rgb": "not a readable mask .*RGB, 8 bits",
    "palette": "not a readable mask .*palette, 8 bits",
    "16 bits": "not a readable mask .*gray, 16 bits",
    "4 bits": "not a readable mask .*gray, 4 bits",
    "jpeg mask": "not a readable mask .*must be a PNG",
    "mask cut": "not a readable mask .*PNG",
    "image cut": "not a readable image",
    "image text": "not a readable image",
}


def settings(on_error):
    config = default_config().data
    config.update({"workers": 2, "on_error": on_error})
    return config


def train(source, on_error="raise"):
    decoder = PairDecoder(source, CANVAS, shrink=True)
    options = {"seed": 3, "batch": 6, "first": 0, "last": len(source) // 6}
    return joined(train_batches(source, settings(on_error), decoder=decoder, **options))


def evaluate(source, on_error="raise"):
    decoder = PairDecoder(source, CANVAS, shrink=False)
    return joined(eval_batches(source, settings(on_error), batch=8, decoder=decoder))


def joined(batches):
    batches = list(batches)
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


def are_shades(source, found, indices):
    for image, label, size, index in zip(
        found["image"], found["label"], found["size"], indices, strict=True
    ):
        assert size.tolist() == [HEIGHT, WIDTH]
        assert (image[:HEIGHT, :WIDTH] == 7 * index).all()
        expected = MAP[source.masks[index]]
        np.testing.assert_array_equal(label[:HEIGHT, :WIDTH], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_pair_is_named(kind):
    example = Example(*damaged(*Pairs().pairs[BAD], kind))
    with pytest.raises(UserError, match=KINDS[kind]) as caught:
        decode(example, CANVAS, shrink=True)
    message = str(caught.value)
    assert message.startswith("pairs train, example 9: ")
    assert "\n" not in message and "BytesIO" not in message


def test_by_default_it_ends_the_run():
    source = Pairs()
    source.pairs[BAD] = damaged(*source.pairs[BAD], "label")
    for run in (train, evaluate):
        with pytest.raises(UserError, match=f"^pairs train, example {BAD}: label 4"):
            run(source)


def test_skipping_replaces_and_marks():
    """One of each kind, and a good one after it."""
    source = Pairs(24)
    count, bad = len(source), 1 + 2 * np.arange(len(KINDS))
    for index, kind in zip(bad, KINDS, strict=True):
        source.pairs[index] = damaged(*source.pairs[index], kind)
    found = train(source, "skip")
    indices = order.locate(np.arange(count), count, 3)
    np.testing.assert_array_equal(found["bad"], np.isin(indices, bad))
    are_shades(source, found, np.where(found["bad"], indices + 1, indices))

    found = evaluate(source, "skip")
    places = np.arange(len(found["mask"]))
    skipped = np.isin(places, bad)
    np.testing.assert_array_equal(found["mask"], (places < count) & ~skipped)
    np.testing.assert_array_equal(found["bad"], skipped)
    kept = found["mask"]
    are_shades(source, {k: v[kept] for k, v in found.items()}, places[kept])
    assert not found["size"][bad].any()
