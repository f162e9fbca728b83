"""Exported programs against the networks they are made of."""

import errno
import json
import os
import pathlib
import re
import subprocess
import sys
import types
import zipfile

import jax
import numpy as np
import pytest
from jax import export as jax_export
from made_workdirs import make_workdir
from packaging.version import Version
from sklearn.datasets import load_sample_images

from vt_flax.cli import export, startup
from vt_flax.data.augment import normalize
from vt_flax.data.augment.resampling import center_crop
from vt_flax.data.host import tensorflow
from vt_flax.experimental import tensorflow_bridge
from vt_flax.inference import loader, program
from vt_flax.inference.predictor import load

HERE = pathlib.Path(__file__).parent
DOCS = HERE.parents[2] / "docs" / "export.md"
NAMES = ("one", "two", "three", "four", "five")

SMALL = {"stem": "small", "stage_sizes": [1, 1, 1, 1], "width": 8}
VT = {"token_channels": 32, "heads": 4, "group_channels": 8}
PYRAMID = {"fpn_channels": 16, "head_channels": 16}
DATA = {"image_size": 32, "eval_resize": 36}
RUNS = {
    "classifier": {"model": {"name": "vt_resnet18", **SMALL, **VT}, "data": DATA},
    "plain": {
        "model": {"name": "resnet18", **SMALL},
        "data": DATA,
        "ema": {"decay": 0.0},
    },
    "segmenter": {
        "model": {"name": "fpn_resnet18", **SMALL, **PYRAMID},
        "segmentation": {"canvas": [32, 48], "crop": [32, 32]},
    },
}


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, config in RUNS.items():
        make_workdir(folder / name, config, NAMES, (3, 7) if name == "plain" else (7,))
    return folder


def photographs(count, height, width):
    """Crops of the two photographs that scikit-learn ships, uint8."""
    rng, crops = np.random.default_rng(0), []
    for i in range(count):
        whole = load_sample_images().images[i % 2][:: 1 + i % 5, :: 1 + i % 5]
        top, left = (
            rng.integers(n - m + 1)
            for n, m in zip(whole.shape, (height, width), strict=False)
        )
        crops.append(whole[top : top + height, left : left + width])
    return np.stack(crops)


@pytest.fixture
def exported(workdirs, tmp_path, monkeypatch):
    """Runs the command, which must succeed; returns the file."""

    def run(workdir, *arguments, out="out.zip"):
        words = ["export", "--workdir", workdirs / workdir, "--out", tmp_path / out]
        monkeypatch.setattr(sys, "argv", [*map(str, [*words, *arguments])])
        startup.run(export.main)
        return tmp_path / out

    return run


def logits_of(predictor, images):
    """Returns the network's own logits, compiled as programs are."""
    config = predictor.task.config.data
    apply = jax.jit(lambda v, x: predictor.model.apply(v, normalize(x, config)))
    return np.asarray(apply(predictor.variables, images))


def documented_lines():
    return re.search(r"```python\n(.*?)```", DOCS.read_text(), re.S)[1]


# ---------------------------------------------------------------- without this package

# Reads lines that define `load`, and the names of a program and of its images.
STRANGER = """
import json, sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in (
            "vt_flax", "flax", "optax", "orbax", "tensorflow", "chex", "ml_collections"
        ):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
lines, file, images = json.load(sys.stdin)
exec(lines)
import numpy as np
program, about = load(file)
images, found = np.load(images), {}
for batch in (1, 3):
    for name, array in program(images[:batch]).items():
        found[f"{name}{batch}"] = np.asarray(array)
np.savez("found.npz", **found)
assert not {"vt_flax", "flax"} & {*sys.modules}
"""


@pytest.mark.slow
def test_a_program_is_the_network_where_only_jax_is(workdirs, exported, tmp_path):
    file, images = exported("classifier"), photographs(3, 32, 32)
    np.save(tmp_path / "images.npy", images)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER],
        input=json.dumps([documented_lines(), str(file), "images.npy"]),
        # Compiled quickly, as everything else in these tests.
        env=environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "found.npz")
    with zipfile.ZipFile(file) as parts:
        program = jax_export.deserialize(bytearray(parts.read("program.stablehlo")))
    assert "tpu_custom_call" not in program.mlir_module()  # no kernels of Pallas
    # The EMA weights, as in `predict`.
    assert loader.load(file)[1]["weights"] == "ema"
    predictor = load(workdirs / "classifier")
    normal = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    apply = jax.jit(predictor.model.apply)
    expected = np.asarray(apply(predictor.variables, normal.astype(np.float32)))
    assert np.ptp(expected, 0).max() > 0.1, "the images must not look all alike"
    probs = np.exp(expected.astype(np.float64))
    probs /= probs.sum(1, keepdims=True)
    for batch in (1, 3):
        np.testing.assert_allclose(found[f"logits{batch}"], expected[:batch], atol=1e-5)
        found_probs = found[f"probabilities{batch}"]
        np.testing.assert_allclose(found_probs, probs[:batch], atol=1e-5)


def test_the_file_is_as_documented(workdirs, exported, capsys):
    file = exported("plain", "--step", 3)
    printed = capsys.readouterr().out
    assert "Wrote" in printed and "input  images: uint8 (batch, 32, 32, 3)" in printed
    with zipfile.ZipFile(file) as parts:
        names = ["program.stablehlo", "metadata.json", "load.py"]
        assert parts.namelist() == names and parts.testzip() is None
        assert parts.read("load.py").decode() == documented_lines()
        about = json.loads(parts.read("metadata.json"))
        program = jax_export.deserialize(bytearray(parts.read("program.stablehlo")))
        # Files without a time: the same network makes the same bytes.
        assert {part.date_time[0] for part in parts.infolist()} == {1980}
    config = json.loads((workdirs / "plain" / "config.json").read_text())["config"]
    assert about["model"] == config["model"] and about["class_names"] == [*NAMES]
    assert (about["step"], about["weights"], about["format"]) == (3, "raw", 1)
    assert about["jax"] == jax.__version__
    assert about["platforms"] == list(program.platforms) == ["cpu", "cuda", "tpu"]
    assert about["calling_convention_version"] == program.calling_convention_version
    given = jax.tree.unflatten(program.out_tree, program.out_avals)
    assert {
        a["name"]: (a["dtype"], *map(str, a["shape"])) for a in about["outputs"]
    } == {
        name: (str(spec.dtype), *map(str, spec.shape)) for name, spec in given.items()
    }
    assert "short side resized to 36" in about["inputs"][0]["meaning"]
    assert about["preprocessing"]["mean"] == config["data"]["mean"]


def test_an_expired_program_is_one_line(tmp_path):
    """Since 0.11.1, JAX refuses what was exported before 24 November 2025."""
    file = tmp_path / "old.zip"
    with zipfile.ZipFile(file, "w") as parts:
        # Of x + 1, for two float32.
        parts.write(HERE / "jax_0.7.2.stablehlo", "program.stablehlo")
        parts.writestr("metadata.json", json.dumps({"jax": "0.7.2"}))
    if Version(jax.__version__) < Version("0.11.1"):
        program, _ = loader.load(file)
        np.testing.assert_array_equal(program(np.float32([1, 5]))["y"], [2, 6])
        return
    with pytest.raises(ValueError, match="does not read what JAX 0.7.2 exported"):
        loader.load(file)


# --------------------------------------------------------------------------- options


@pytest.mark.slow
def test_a_classifier_takes_images_of_any_size(workdirs):
    predictor = load(workdirs / "plain")
    found = program.make_program(predictor, program.ANY)
    assert found.images.shape == ("batch", "height", "width", 3)
    images = photographs(2, 57, 40)
    logits = jax.jit(found.function)(found.variables, images)["logits"]
    crop = np.asarray(jax.jit(lambda x: center_crop(x, 32, 36))(images))
    # A level at just about a half may be rounded otherwise; a crop that is a pixel off
    # is far beyond it.
    expected = logits_of(predictor, crop)
    np.testing.assert_allclose(logits, expected, atol=2e-3)
    shifted = logits_of(predictor, np.roll(crop, 1, axis=2))
    assert np.abs(shifted - expected).max() > 1e-2


@pytest.mark.slow
def test_masks_are_of_the_images_own_size(workdirs, exported):
    serve, about = loader.load(exported("segmenter", "--input_size", "any", "--logits"))
    assert [array["name"] for array in about["inputs"]] == ["images"]
    images = photographs(2, 24, 40)
    found = serve(images)
    predictor = load(workdirs / "segmenter")
    canvas = np.zeros((2, 32, 48, 3), np.uint8)
    canvas[:, :24, :40] = images
    classes, *_, logits = jax.jit(
        lambda v, x, sizes: predictor.task.predict(
            lambda x: predictor.model.apply(v, x, train=False),
            x,
            sizes,
            with_logits=True,
        )
    )(predictor.variables, canvas, np.full((2, 2), (24, 40), np.int32))
    assert len(np.unique(classes)) > 2 and found["classes"].dtype == np.uint8
    np.testing.assert_array_equal(found["classes"], classes[:, :24, :40])
    np.testing.assert_allclose(found["logits"], logits[:, :24, :40], atol=1e-5)
    with pytest.raises(ValueError):  # beyond the canvas
        serve(photographs(1, 33, 40))
    # Of the canvas's or another size.
    for size, shape in ((None, (32, 48)), ((24, 40), (24, 40))):
        known = program.make_program(predictor, size)
        assert known.images.shape == ("batch", *shape, 3)
        shapes = jax.eval_shape(
            known.function, known.variables, np.zeros((2, *shape, 3), np.uint8)
        )
        assert shapes["classes"].shape == (2, *shape)


def test_type_and_platforms(workdirs, exported):
    serve, about = loader.load(
        exported("plain", "--dtype", "bfloat16", "--platforms", "cpu")
    )
    assert about["model"]["dtype"] == "bfloat16" and about["platforms"] == ["cpu"]
    images = photographs(3, 32, 32)
    found = np.asarray(serve(images)["logits"])
    assert found.dtype == np.float32
    whole = logits_of(load(workdirs / "plain"), images)
    assert 1e-4 < np.abs(found - whole).max() < 0.1 * np.abs(whole).max()


# ------------------------------------------------------------------------ TensorFlow


def tensorflow_runs_what_jax_writes() -> bool:
    tf, bridge = tensorflow(), tensorflow_bridge()
    function = tf.function(
        bridge.convert(lambda x: x + 1, polymorphic_shapes=["b"]),
        [tf.TensorSpec([None])],
        autograph=False,
    )
    try:
        function(tf.ones(2))
    except tf.errors.OpError:
        return False
    return True


@pytest.mark.slow
def test_a_saved_model(workdirs, exported, rejected, monkeypatch, capsys):
    """It gives the network's logits; one that TensorFlow cannot run is not left."""
    tf = tensorflow()
    message = r"TensorFlow \S+ cannot run what JAX \S+ writes for it"
    if not tensorflow_runs_what_jax_writes():
        assert re.search(message, rejected("--kind", "savedmodel", out="out"))
        pytest.skip(f"TensorFlow {tf.__version__} runs no JAX {jax.__version__}")
    out = exported("plain", "--kind", "savedmodel", out="serving/1")
    about = json.loads((out / "assets.extra" / "metadata.json").read_text())
    assert (about["kind"], about["step"]) == ("savedmodel", 7)
    images = photographs(3, 32, 32)
    expected = logits_of(load(workdirs / "plain"), images)
    serve = tf.saved_model.load(str(out)).signatures["serving_default"]
    for batch in (1, 3):
        found = serve(images=tf.constant(images[:batch]))
        assert sorted(found) == ["logits", "probabilities"]
        np.testing.assert_allclose(found["logits"], expected[:batch], atol=1e-5)
    # A SavedModel may be replaced, with all that is in its folder.
    (out / "old").write_text("")
    exported("plain", "--kind", "savedmodel", "--overwrite", out="serving/1")
    assert not (out / "old").exists() and [*out.parent.iterdir()] == [out]

    capsys.readouterr()

    def fail(**arrays):
        raise tf.errors.InvalidArgumentError(None, None, "unregistered operation")

    loaded = types.SimpleNamespace(signatures={"serving_default": fail})
    monkeypatch.setattr(tf.saved_model, "load", lambda folder: loaded)
    assert re.search(message, rejected("--kind", "savedmodel", out="out"))


# -------------------------------------------------------------------------- bad input


@pytest.fixture
def rejected(exported, tmp_path, capsys):
    """Runs what must end with one line and status 2, and write nothing."""

    def run(*arguments, workdir="plain", out="out.zip"):
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        with pytest.raises(SystemExit) as stop:
            exported(workdir, *arguments, out=out)
        assert stop.value.code == 2
        printed = capsys.readouterr()
        line = printed.err.strip()
        assert line.startswith("error: ") and "\n" not in line and not printed.out
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
        return line

    return run


def test_bad_arguments_are_one_line(rejected):
    assert "holds no run" in rejected(workdir="nowhere")
    assert "no checkpoint of step 4: choose from 3, 7" in rejected("--step", 4)
    line = rejected("--platforms", "cpu,gpu")
    assert "'gpu' is not known; choose from cpu, cuda, rocm, tpu" in line
    assert "write a side in pixels" in rejected("--input_size", "8x8x3")
    for size in ("0x8", f"{'9' * 20}x5"):
        assert "at least 1 and at most 65536" in rejected("--input_size", size)
    assert "a classifier's program returns them" in rejected("--logits")
    assert "'float8' is not known" in rejected("--dtype", "float8")
    line = rejected("--input_size", "33x48", workdir="segmenter")
    assert "the evaluation's canvas of 32x48" in line
    assert "unexpected argument '--weight'" in rejected("--weight", "raw")


def test_what_is_there_stays(rejected, tmp_path, monkeypatch):
    (tmp_path / "out.zip").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("mine")
    assert "choose another name, or add --overwrite" in rejected()
    words = ("--overwrite", "--kind", "savedmodel")
    for arguments in (words, words[:1]):
        assert "is a folder, but no SavedModel" in rejected(*arguments, out="folder")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    assert "out.zip: No space left on device" in rejected("--overwrite")
    assert (tmp_path / "out.zip").read_text() == "mine"
