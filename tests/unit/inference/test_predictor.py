"""Networks in use: what they are shown, what they say, one image or many."""

import contextlib
import copy
import pickle
import subprocess
import sys

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
from vt_flax.inference import predictor
from vt_flax.inference.predictor import Predictor
from vt_flax.inference.reading import read_picture
from vt_flax.inference.views import view_of


def noise(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def blocks(height, width, seed=0):
    """An image with edges, which stays what it is when it is made smaller."""
    small = noise(height // 4 + 1, width // 4 + 1, seed=seed)
    return small.repeat(4, 0).repeat(4, 1)[:height, :width]


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


def test_classifiers_see_what_evaluation_sees(classify, tmp_path):
    """To the bit, of JPEG, PNG and BMP, compared with a split of the same files."""
    folder = tmp_path / "all" / "left"
    folder.mkdir(parents=True)
    for i, (height, width) in enumerate(SIZES):
        ending = ("png", "jpg", "bmp")[i % 3]
        Image.fromarray(noise(height, width, seed=i)).save(folder / f"{i}.{ending}")
    source = FolderSource(epath.Path(tmp_path / "all"), "all")
    files = [source.describe(i) for i in range(len(source))]
    batches = eval_batches(source, classify.task.config.data, batch=2)
    with contextlib.closing(batches):
        expected = np.concatenate([batch["image"] for batch in batches])
    for file, image in zip(files, expected, strict=True):
        np.testing.assert_array_equal(classify.view(file).pixels, image)


def test_orientation_is_ignored_where_asked(classify, tmp_path):
    """By every method; the same pixels without the tag are what to expect."""
    data = classify.task.config.data
    side = data.eval_resize or data.image_size  # so that nothing is resized
    image = Image.fromarray(noise(side, side + 8))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "turned.png", **with_orientation(8))
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "upright.png")

    def seen(name, **options):
        file = tmp_path / name
        tokens = classify.tokens(file, **options)["module1"].coefficients
        features = classify.features(file, **options)
        (prediction,) = classify.predict(file, **options)
        view = classify.view(file, **options).pixels
        return view, tokens, features["C4"], prediction.scores

    ignored = seen("turned.png", ignore_orientation=True)
    for found, name in ((ignored, "plain.png"), (seen("turned.png"), "upright.png")):
        *arrays, shares = seen(name)
        for ours, expected in zip(found, arrays, strict=False):
            np.testing.assert_array_equal(ours, expected)
        assert found[-1] == shares
    assert not np.array_equal(ignored[0], seen("turned.png")[0])


def test_probabilities(classify):
    """A softmax in float64 of what the network itself says."""
    images = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
    found = classify.predict(images)
    crops = np.stack([classify.view(image).pixels for image in images])
    inputs = normalized(classify, crops).astype(np.float32)
    logits = jax.jit(classify.model.apply)(classify.variables, inputs)
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    expected = powers / powers.sum(1, keepdims=True)
    for i, prediction in enumerate(found):
        told = dict(prediction.scores)
        assert [of for of, _ in prediction.scores] == sorted(
            NAMES, key=told.get, reverse=True
        )
        np.testing.assert_allclose([told[n] for n in NAMES], expected[i], atol=1e-5)
        assert prediction.confidence == max(told.values())
        assert prediction.name == f"image {i}" and prediction.size == SIZES[i]
        assert prediction.mask is None
    assert len({round(p.confidence, 6) for p in found}) > 4


def test_one_program_whatever_comes(tmp_path):
    """Batches are filled up; sizes of images, and single ones later, change nothing."""
    network = classifier(batch=4)
    images = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
    many = network.predict(images)
    few = network.predict(images[:3])
    (one,) = network.predict(images[5])
    assert network._predict._cache_size() == 1
    assert [p.scores for p in few] == [p.scores for p in many[:3]]
    assert one.scores == many[5].scores
    Image.fromarray(images[1]).save(tmp_path / "1.png")
    mixed = [Image.fromarray(images[0]), tmp_path / "1.png", network.view(images[2])]
    found = network.predict(mixed)
    assert [p.scores for p in found] == [p.scores for p in many[:3]]
    assert [p.name for p in found] == ["image 0", str(tmp_path / "1.png"), "image 0"]
    assert network._predict._cache_size() == 1
    assert network.predict([]) == []


def test_tokens(classify):
    images = np.stack([noise(20, 20, seed=i) for i in range(5)])
    found = classify.tokens(images)
    assert {name: maps.kind for name, maps in found.items()} == classify.tokenizers
    assert list(found) == ["module1", "module2"] and classify.has_tokens
    first, second = found.values()
    assert first.coefficients.shape == (5, 1, 8, MAP, MAP)
    assert second.coefficients.shape == (5, 2, 4, MAP, MAP) and second.first == 4
    assert first.projection.shape == (5, 2, 8, MAP, MAP)
    for maps in (first, second):
        np.testing.assert_allclose(maps.coefficients.sum((3, 4)), 1, rtol=1e-5)
    # The last one by itself: it was in a batch with three others in empty places.
    (alone,) = classify.tokens(images[4])["module2"].coefficients
    np.testing.assert_allclose(second.coefficients[4], alone, rtol=1e-5)
    # From the map of stage 4 as `features` has it.
    maps = classify.features(images)
    assert maps["C4"].shape == (5, MAP, MAP, 16) and maps["C4"].dtype == np.float32
    x = maps["C4"].astype(np.float64).reshape(5, MAP * MAP, -1)
    module = classify.variables["params"]["stage5"]["module1"]["tokenizer"]
    logits = x @ np.asarray(module["filter"]["kernel"], np.float64) / 16**0.5
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    expected = weights.transpose(0, 2, 1).reshape(5, 1, 8, MAP, MAP)
    np.testing.assert_allclose(first.coefficients, expected, rtol=1e-3)


def test_features(classify, segment):
    found = classify.features(noise(30, 40))
    assert {name: values.shape for name, values in found.items()} == {
        "C2": (1, SIDE, SIDE, 4),
        "C3": (1, SIDE // 2, SIDE // 2, 8),
        "C4": (1, MAP, MAP, 16),
        "tokens": (1, 8, 16),
    }
    found = segment.features([noise(10, 12), noise(20, 28)])
    assert found["C2"].shape == (2, *CANVAS, 4)
    assert found["P5"].shape == (2, 3, 4, 8)
    assert found["tokens"].shape == (2, 32, 16)


LARGE = [(20, 28), (13, 9), (61, 90), (1, 400), (300, 2), (19, 57)]


def test_large_images_are_shrunk_to_the_canvas(segment):
    for size in LARGE:
        image = blocks(*size)
        view = segment.view(image)
        height, width = view.lengths
        assert view.size == size and view.pixels.shape == (*CANVAS, 3)
        placed = view.pixels[:height, :width]
        assert not view.pixels[height:].any() and not view.pixels[:, width:].any()
        if size[0] <= CANVAS[0] and size[1] <= CANVAS[1]:
            np.testing.assert_array_equal(placed, image)
        elif min(size) > 10:
            whole = Image.fromarray(image)
            expected = ImageOps.contain(whole, CANVAS[::-1], Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(placed, np.asarray(expected))
        else:  # of which nothing would be left
            assert min(height, width) == 1 and view.lengths in ((1, 28), (20, 1))


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
        wide = np.stack(
            [
                np.asarray(
                    Image.fromarray(np.ascontiguousarray(logits[..., c])).resize(
                        CANVAS[::-1], Image.Resampling.BILINEAR
                    )
                )
                for c in range(3)
            ],
            -1,
        )[:height, :width].astype(np.float64)
        powers = np.exp(wide - wide.max(-1, keepdims=True))
        shares = powers / powers.sum(-1, keepdims=True)
        sure = np.ptp(np.sort(shares, -1)[..., 1:], -1) > 1e-3
        assert sure.mean() > 0.9 and prediction.mask.shape == (height, width)
        np.testing.assert_array_equal(prediction.mask[sure], wide.argmax(-1)[sure])
        assert prediction.confidence == pytest.approx(shares.max(-1).mean(), abs=1e-4)
        counts = np.bincount(prediction.mask.ravel(), minlength=3) / (height * width)
        assert dict(prediction.scores) == {
            name: share for name, share in zip(NAMES, counts, strict=True) if share
        }
    large = found[2]
    assert large.mask.shape == (61, 90) and large.classes.shape == (19, 28)
    assert sum(share for _, share in large.scores) == pytest.approx(1)


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


def test_what_is_no_image_is_named(classify, tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    images = [noise(8, 8), tmp_path / "a.jpg"]
    for method in (classify.predict, classify.features, classify.tokens):
        with pytest.raises(UserError, match=f"^{tmp_path}/a.jpg: not an image"):
            method(images)
    with pytest.raises(UserError, match="^image 1 is an array of 8 x 8, float64: "):
        classify.predict([noise(8, 8), np.zeros((8, 8))])


def test_a_network_says_what_it_is(classify, segment):
    assert repr(classify) == (
        "<Predictor vt_resnet18: 3 classes (left, middle, right), input 16 x 16, "
        "step 0, raw weights>"
    )
    config, names = classify.task.config, [f"{i}\x1b[0m{'x' * 99}" for i in range(9)]
    task = type(classify.task)(config, names)
    other = Predictor(classify.model, {}, task, "t", step=12000, averaged=True)
    assert repr(other).endswith(", ...), input 16 x 16, step 12,000, EMA weights>")
    assert "9 classes (0\\x1b[0m" in repr(other) and len(repr(other)) < 240
    assert "input 20 x 28" in repr(segment)


def test_folders_bytes_and_arrays_of_paths(classify, tmp_path):
    """All methods take them, and say the same of the same pixels."""
    for i in range(3):
        Image.fromarray(noise(20, 24, seed=i)).save(tmp_path / f"{i}.png")
    files = sorted(map(str, tmp_path.iterdir()))
    expected = classify.predict([noise(20, 24, seed=i) for i in range(3)])
    encoded = [(tmp_path / f"{i}.png").read_bytes() for i in range(3)]
    for images, names in (
        (tmp_path, files),
        (f"{tmp_path}/*.png", files),
        (np.array(files), files),
        (encoded, ["image 0", "image 1", "image 2"]),
    ):
        found = classify.predict(images)
        assert [p.name for p in found] == names
        assert [p.scores for p in found] == [p.scores for p in expected]
        assert len(classify.features(images)["C4"]) == 3
        assert len(classify.attention(images).images) == 3
    np.testing.assert_array_equal(
        classify.view(encoded[0]).pixels, classify.view(noise(20, 24)).pixels
    )
    for images, told in ((tmp_path, "several images"), ([], "no image")):
        with pytest.raises(UserError, match=f"view takes one image, not {told}"):
            classify.view(images)


def test_broken_weights_are_told(classify, monkeypatch):
    broken = jax.tree.map(lambda x: x * np.nan, classify.variables)
    monkeypatch.setattr(classify, "variables", broken)
    with pytest.raises(UserError, match="^image 0: .* probabilities are not"):
        classify.predict(noise(8, 8))
    with pytest.raises(UserError, match="batch 0: must be at least 1"):
        classifier(batch=0)


@pytest.mark.slow
def test_networks_are_pickled(classify, segment):
    """And say the same in another program, also in one that computes in 64 bits."""
    image = noise(20, 28)
    for network in (classify, segment):
        kept = pickle.dumps(network)
        with jax.enable_x64(True):
            again = pickle.loads(kept).predict(image)
        (expected,) = network.predict(image)
        for (found,) in (again, copy.deepcopy(network).predict(image)):
            # A program for another number of images may round otherwise.
            assert dict(found.scores) == pytest.approx(dict(expected.scores), rel=1e-6)
            np.testing.assert_array_equal(found.mask, expected.mask)


def test_views_are_taken_as_they_are(classify):
    """As the command gives them, after the image itself is gone."""
    image = noise(33, 44)
    view = view_of(read_picture(image, "that"), classify.task)
    (found,) = classify.predict([view])
    assert found.name == "that" and found.size == (33, 44)
    assert found.scores == classify.predict(image)[0].scores


@pytest.mark.slow
def test_what_load_is_given(tmp_path, monkeypatch):
    model = {"name": "resnet18", **RESNET, "num_classes": 0}
    config = {"model": model, "data": {"image_size": SIDE}}
    make_workdir(tmp_path / "run", config, NAMES)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    network = vt_flax.load("~/run", "--config.data.image_size=24")
    assert "3 classes (left, middle, right), input 24 x 24, step 7, EMA" in repr(
        network
    )
    for arguments, match in (
        (("run/checkpoints/7",), "^run/checkpoints/7 holds no run .*: name the folder"),
        (("none",), r"^none holds no run .config.json is missing."),
        (("gs://b/run",), "^workdir gs://b/run: buckets are not supported"),
        (("run", 7), "^overrides 7: pass a list"),
        (("run", {"seed": 1}), "^overrides .*: pass a list, as in ..--config.data"),
        (
            ("run", ["--config.model.width=8"]),
            "^batch_stats/.* another shape than this",
        ),
        (
            ("run", ["--config.model.num_classes=9"]),
            "^params/head/.* leave out the over",
        ),
    ):
        with pytest.raises(UserError, match=match):
            vt_flax.load(*arguments)
    for batch in (0, 2.5, "8"):
        with pytest.raises(UserError, match="^batch .*: must be at least 1"):
            vt_flax.load("run", batch=batch)


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None  # importing it raises an ImportError
import numpy as np
import vt_flax
network = vt_flax.load("run")
np.save("seen.npy", np.stack([network.view(file).pixels for file in sys.argv[1:]]))
from vt_flax.cli import predict
predict.main(["--workdir", "run", "--out", "out", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_tensorflow_is_not_needed(tmp_path):
    """And the pixels are those that evaluation sees in a JPEG and a PNG."""
    model = {"name": "resnet18", **RESNET, "num_classes": 0}
    data = {"image_size": SIDE, "eval_resize": SIDE + 3}
    make_workdir(tmp_path / "run", {"model": model, "data": data}, NAMES)
    (tmp_path / "all" / "left").mkdir(parents=True)
    for name in ("a.jpg", "b.png"):
        Image.fromarray(noise(61, 47)).save(tmp_path / "all" / "left" / name)
    source = FolderSource(epath.Path(tmp_path / "all"), "all")
    files = [source.describe(i) for i in range(2)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(file in done.stdout for file in files) and list(tmp_path.glob("out/*"))
    config = vt_flax.load(tmp_path / "run").task.config.data
    (batch,) = eval_batches(source, config, batch=2)
    np.testing.assert_array_equal(np.load(tmp_path / "seen.npy"), batch["image"])


def test_the_package_is_as_quick_to_import_as_without_it():
    code = (
        "import sys, vt_flax; assert 'load' in vt_flax.__all__; "
        "print([m for m in sys.modules if m.startswith(('vt_flax.inference', "
        "'vt_flax.training', 'orbax', 'matplotlib', 'tensorflow'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert vt_flax.load is predictor.load
    assert not hasattr(vt_flax, "laod")
