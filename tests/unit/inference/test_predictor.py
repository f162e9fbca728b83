"""Networks in use: their inputs, their outputs, one image or many."""

import contextlib

import jax
import numpy as np
import pytest
from etils import epath
from image_files import with_orientation
from made_workdirs import make_workdir
from PIL import Image, ImageOps
from tiny_networks import CANVAS, MAP, NAMES, RESNET, SIDE, classifier, segmenter

import vt_flax
from vt_flax.data.batches import eval_batches
from vt_flax.data.folders import FolderSource
from vt_flax.errors import UserError
from vt_flax.inference.reading import read_picture
from vt_flax.inference.views import view_of


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def blocks(height, width, seed=0):
    """An image with edges, which looks alike when it is shrunk."""
    small = noise(height // 4 + 1, width // 4 + 1, seed)
    return small.repeat(4, 0).repeat(4, 1)[:height, :width]


def view(network, image):
    return view_of(read_picture(image), network.task)


@pytest.fixture(scope="module")
def classify():
    return classifier()


@pytest.fixture(scope="module")
def segment():
    return segmenter()


SIZES = [(40, 30), (16, 50), (1, 1), (1, 2000), (300, 20), (20, 20)]


def normalized(network, pixels):
    data = network.task.config.data
    return (pixels / 255 - np.asarray(data.mean)) / np.asarray(data.std)


def softmax(logits):
    """Softmax over the last axis in float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# ------------------------------------------------------------------------------ inputs


def image_folder(folder):
    """Writes a class folder of images of several formats; returns their source."""
    (folder / "left").mkdir(parents=True)
    for i, size in enumerate(SIZES):
        ending = ("png", "jpg", "bmp")[i % 3]
        Image.fromarray(noise(*size, seed=i)).save(folder / "left" / f"{i}.{ending}")
    return FolderSource(epath.Path(folder), "all")


def evaluated(source, config):
    """Returns the pixels of all images as evaluation has them."""
    with contextlib.closing(eval_batches(source, config, batch=2)) as batches:
        return np.concatenate([batch["image"] for batch in batches])


def test_classifiers_see_what_evaluation_sees(classify, tmp_path):
    """To the bit, in JPEG, PNG and BMP."""
    source = image_folder(tmp_path / "all")
    expected = evaluated(source, classify.task.config.data)
    for i, image in enumerate(expected):
        np.testing.assert_array_equal(view(classify, source.describe(i)).pixels, image)


def test_large_images_are_shrunk_to_the_canvas(segment):
    for size in [(20, 28), (13, 9), (61, 90), (1, 400), (300, 2)]:
        image = blocks(*size)
        found = view(segment, image)
        height, width = found.lengths
        assert found.size == size and found.pixels.shape == (*CANVAS, 3)
        placed = found.pixels[:height, :width]
        assert not found.pixels[height:].any() and not found.pixels[:, width:].any()
        if size[0] <= CANVAS[0] and size[1] <= CANVAS[1]:
            np.testing.assert_array_equal(placed, image)
        elif min(size) > 10:
            whole = Image.fromarray(image)
            expected = ImageOps.contain(whole, CANVAS[::-1], Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(placed, np.asarray(expected))
        else:  # of which nothing would be left
            assert found.lengths in ((1, 28), (20, 1))


def test_orientation_is_ignored_by_every_method(classify, tmp_path):
    image = Image.fromarray(noise(20, 28))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "turned.png", **with_orientation(8))

    def outputs(name, **options):
        file = tmp_path / name
        tokens = classify.tokens(file, **options)["module1"].coefficients
        (prediction,) = classify.predict(file, **options)
        return tokens, classify.features(file, **options)["C4"], prediction.confidence

    found = outputs("turned.png", ignore_orientation=True)
    upright = outputs("turned.png")
    for ours, plain, turned in zip(found, outputs("plain.png"), upright, strict=True):
        np.testing.assert_array_equal(ours, plain)
        assert not np.array_equal(ours, turned)


def test_what_is_no_image_is_named(classify, tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    for method in (classify.predict, classify.features, classify.tokens):
        with pytest.raises(UserError, match=f"^{tmp_path}/a.jpg: not an image"):
            method([noise(8, 8), tmp_path / "a.jpg"])
    with pytest.raises(UserError, match="^image 1 is an array of 8 x 8, float64: "):
        classify.predict([noise(8, 8), np.zeros((8, 8))])


def test_one_program_whatever_comes(tmp_path):
    """Batches are padded; sizes of images, and single ones later, change nothing."""
    network = classifier(batch=4)
    images = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
    many = network.predict(images)
    few = network.predict(images[:3])
    # Also where 64 bits are on.
    with jax.enable_x64(True):
        (one,) = network.predict(images[5])
    assert network._predict._cache_size() == 1
    assert [p.scores for p in few] == [p.scores for p in many[:3]]
    assert one.scores == many[5].scores
    Image.fromarray(images[1]).save(tmp_path / "1.png")
    mixed = [Image.fromarray(images[0]), tmp_path / "1.png", view(network, images[2])]
    found = network.predict(mixed)
    assert [p.scores for p in found] == [p.scores for p in many[:3]]
    assert [p.name for p in found] == ["image 0", str(tmp_path / "1.png"), "image"]
    assert network._predict._cache_size() == 1
    assert network.predict([]) == []


# ----------------------------------------------------------------------------- outputs


def test_probabilities(classify):
    """A softmax in float64 of the network's logits."""
    images = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
    found = classify.predict(images)
    crops = np.stack([view(classify, image).pixels for image in images])
    inputs = normalized(classify, crops).astype(np.float32)
    expected = softmax(jax.jit(classify.model.apply)(classify.variables, inputs))
    for i, prediction in enumerate(found):
        scores = dict(prediction.scores)
        assert [*scores] == sorted(NAMES, key=scores.get, reverse=True)
        np.testing.assert_allclose([scores[n] for n in NAMES], expected[i], atol=1e-5)
        assert prediction.confidence == max(scores.values())
        assert prediction.name == f"image {i}" and prediction.size == SIZES[i]
        assert prediction.mask is None
    assert len({round(p.confidence, 6) for p in found}) > 4


def test_tokens(classify):
    images = np.stack([noise(20, 20, seed=i) for i in range(5)])
    found = classify.tokens(images)
    assert {name: maps.kind for name, maps in found.items()} == classify.tokenizers
    assert list(found) == ["module1", "module2"]
    first, second = found.values()
    assert first.coefficients.shape == (5, 1, 8, MAP, MAP)
    assert second.coefficients.shape == (5, 2, 4, MAP, MAP) and second.first == 4
    assert first.projection.shape == (5, 2, 8, MAP, MAP)
    for maps in (first, second):
        np.testing.assert_allclose(maps.coefficients.sum((3, 4)), 1, rtol=1e-5)
    # From the map of stage 4 as `features` has it.
    maps = classify.features(images)
    assert {name: values.shape for name, values in maps.items()} == {
        "C2": (5, SIDE, SIDE, 4),
        "C3": (5, SIDE // 2, SIDE // 2, 8),
        "C4": (5, MAP, MAP, 16),
        "tokens": (5, 8, 16),
    }
    x = maps["C4"].astype(np.float64).reshape(5, MAP * MAP, -1)
    module = classify.variables["params"]["stage5"]["module1"]["tokenizer"]
    logits = x @ np.asarray(module["filter"]["kernel"], np.float64) / 16**0.5
    expected = softmax(logits.transpose(0, 2, 1)).reshape(5, 1, 8, MAP, MAP)
    np.testing.assert_allclose(first.coefficients, expected, rtol=1e-3)


@pytest.mark.slow
def test_masks(segment):
    """Classes and probabilities of the network's own maps, enlarged by Pillow."""
    images = [blocks(*size, seed=i) for i, size in enumerate([(20, 28), (13, 9)])]
    found = segment.predict([*images, blocks(61, 90)])
    network = jax.jit(segment.model.apply)
    for image, prediction in zip(images, found, strict=False):
        height, width = image.shape[:2]
        canvas = np.zeros((1, *CANVAS, 3))
        canvas[0, :height, :width] = normalized(segment, image)
        logits = np.asarray(network(segment.variables, canvas.astype(np.float32)))[0]
        wide = [
            Image.fromarray(np.ascontiguousarray(logits[..., c])).resize(
                CANVAS[::-1], Image.Resampling.BILINEAR
            )
            for c in range(3)
        ]
        probs = softmax(np.stack(wide, -1)[:height, :width])
        sure = np.ptp(np.sort(probs, -1)[..., 1:], -1) > 1e-3
        assert sure.mean() > 0.9 and prediction.mask.shape == (height, width)
        np.testing.assert_array_equal(prediction.mask[sure], probs.argmax(-1)[sure])
        assert prediction.confidence == pytest.approx(probs.max(-1).mean(), abs=1e-4)
        counts = np.bincount(prediction.mask.ravel(), minlength=3) / (height * width)
        assert dict(prediction.scores) == {
            name: area for name, area in zip(NAMES, counts, strict=True) if area
        }
    large = found[2]
    assert large.mask.shape == (61, 90) and large.classes.shape == (19, 28)
    assert sum(area for _, area in large.scores) == pytest.approx(1)


def test_tokens_of_a_pyramid(segment):
    images = [blocks(20, 28), blocks(10, 21)]
    attention = segment.attention(images)
    assert list(attention.tokens) == ["level2", "level3", "level4", "level5"]
    np.testing.assert_array_equal(attention.coverage, [(1, 1), (0.5, 0.75)])
    for image, shown in zip(images, attention.images, strict=True):
        np.testing.assert_array_equal(shown, image)
    for maps in attention.tokens.values():
        assert maps.kind == "static" and maps.coefficients.shape[:3] == (2, 1, 8)
        assert maps.projection.shape[:3] == (2, 2, 8)
        assert maps.projection.shape[3:] == maps.coefficients.shape[3:]
        np.testing.assert_allclose(maps.coefficients.sum((3, 4)), 1, rtol=1e-5)
        np.testing.assert_allclose(maps.projection.sum(2), 1, rtol=1e-5)


def test_broken_weights(classify, monkeypatch):
    broken = jax.tree.map(lambda x: x * np.nan, classify.variables)
    monkeypatch.setattr(classify, "variables", broken)
    with pytest.raises(UserError, match="^image 0: .* probabilities are not finite"):
        classify.predict(noise(8, 8))


# ---------------------------------------------------------------------------- workdirs


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    data = {"image_size": SIDE, "eval_resize": SIDE + 3}
    model = {"name": "resnet18", **RESNET, "num_classes": 0}
    make_workdir(folder / "run", {"model": model, "data": data}, NAMES)
    return folder / "run"


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("run/checkpoints/7", [], "^.*run/checkpoints/7 holds no run"),
        ("none", [], "^.*none holds no run .config.json is missing."),
        ("run", ["--config.model.width=8"], "^batch_stats/.* another shape than this"),
    ],
)
def test_workdirs_that_cannot_be_loaded(name, overrides, message, workdir):
    with pytest.raises(UserError, match=message):
        vt_flax.load(workdir.parent / name, overrides)
    with pytest.raises(UserError, match="batch 0: must be at least 1"):
        vt_flax.load(workdir, batch=0)
