"""Exported programs against the networks they are made of."""

import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types
import zipfile

import jax
import numpy as np
import pytest
from jax import export as jax_export
from jax.extend.mlir.dialects import stablehlo
from made_workdirs import make_workdir
from packaging.version import Version
from sklearn.datasets import load_sample_images
from tpu_programs import needs_tpu_compiler, run_program

from vt_flax.cli import export, startup
from vt_flax.data.augment import normalize
from vt_flax.data.augment.resampling import center_crop
from vt_flax.data.host import tensorflow
from vt_flax.experimental import tensorflow_bridge
from vt_flax.inference import exporting, loader, program
from vt_flax.inference.predictor import load
from vt_flax.training.weights import read_weights

HERE = pathlib.Path(__file__).parent
DOCS = HERE.parents[2] / "docs" / "export.md"
NAMES = ("one", "two", "three", "four", "five")
BATCHES = (1, 3, 17)

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
    """Pieces of the two photographs that scikit-learn ships, uint8."""
    rng, pieces = np.random.default_rng(0), []
    for i in range(count):
        whole = load_sample_images().images[i % 2][:: 1 + i % 5, :: 1 + i % 5]
        top, left = (
            rng.integers(n - m + 1)
            for n, m in zip(whole.shape, (height, width), strict=False)
        )
        pieces.append(whole[top : top + height, left : left + width])
    return np.stack(pieces)


def exported(monkeypatch, *arguments):
    """Runs the command, which must succeed."""
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    startup.run(export.main)


def weights_of(predictor):
    return program.make_program(predictor).variables


def logits_of(predictor, images):
    """What the network itself says of images."""
    config = predictor.task.config.data
    apply = jax.jit(lambda v, x: predictor.model.apply(v, normalize(x, config)))
    return np.asarray(apply(weights_of(predictor), images))


def documented_lines():
    return re.search(r"```python\n(.*?)```", DOCS.read_text(), re.S)[1]


# -------------------------------------------------------- where this package is not

# Given lines that define `load`, and of each program its file and that of its inputs.
STRANGER = """
import json, sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in (
            "vt_flax", "flax", "optax", "orbax", "tensorflow", "chex", "ml_collections"
        ):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
for name in ("vt_flax", "flax"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported")

lines, wanted = json.load(sys.stdin)
exec(lines)
import numpy as np
for file, inputs, batches in wanted:
    program, about = load(file)
    given = np.load(inputs)
    given = [given[array["name"]] for array in about["inputs"]]
    found = {}
    for batch in batches:
        for name, array in program(*(x[:batch] for x in given)).items():
            found[f"{name}{batch}"] = np.asarray(array)
    np.savez(inputs + ".found.npz", **found)
assert not {"vt_flax", "flax"} & {*sys.modules}
"""


def answers_elsewhere(folder, programs):
    """Runs programs in a process that knows JAX alone; returns what each gives."""
    wanted = []
    for i, (file, inputs, batches) in enumerate(programs):
        np.savez(folder / f"{i}.npz", **inputs)
        wanted.append((str(file), str(folder / f"{i}.npz"), batches))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER],
        input=json.dumps([documented_lines(), wanted]),
        # Compiled quickly, as everything else in these tests.
        env=environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [dict(np.load(f"{inputs}.found.npz")) for _, inputs, _ in wanted]


@pytest.mark.slow
def test_programs_are_the_networks_where_only_jax_is(workdirs, tmp_path, monkeypatch):
    files = tmp_path / "classifier.zip", tmp_path / "segmenter.zip"
    exported(monkeypatch, "--workdir", workdirs / "classifier", "--out", files[0])
    exported(
        monkeypatch,
        *("--workdir", workdirs / "segmenter", "--out", files[1], "--logits"),
    )
    images = photographs(17, 32, 32)
    scenes, rng = photographs(3, 32, 48), np.random.default_rng(1)
    sizes = rng.integers(9, (33, 49), (3, 2)).astype(np.int32)
    sizes[0] = 32, 48
    found, masks = answers_elsewhere(
        tmp_path,
        [
            (files[0], {"images": images}, BATCHES),
            (files[1], {"images": scenes, "sizes": sizes}, BATCHES[:2]),
        ],
    )

    # Averaged weights, as in `predict`.
    weights, name = read_weights("here", workdirs / "classifier" / "checkpoints" / "7")
    assert name == "ema" and loader.load(files[0])[1]["weights"] == "ema"
    normal = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    model = load(workdirs / "classifier").model
    expected = np.asarray(jax.jit(model.apply)(weights, normal.astype(np.float32)))
    assert np.ptp(expected, 0).max() > 0.1, "the images must not look all alike"
    shares = np.exp(expected.astype(np.float64))
    shares /= shares.sum(1, keepdims=True)
    for batch in BATCHES:
        np.testing.assert_allclose(found[f"logits{batch}"], expected[:batch], atol=1e-5)
        np.testing.assert_allclose(
            found[f"probabilities{batch}"], shares[:batch], atol=1e-5
        )

    predictor = load(workdirs / "segmenter")
    classes, *_, logits = jax.jit(
        lambda v, x, sizes: predictor.task.predict(
            lambda x: predictor.model.apply(v, x, train=False),
            x,
            sizes,
            with_logits=True,
        )
    )(weights_of(predictor), scenes, sizes)
    assert len(np.unique(classes)) > 2
    for batch in BATCHES[:2]:
        np.testing.assert_allclose(masks[f"logits{batch}"], logits[:batch], atol=1e-5)
        np.testing.assert_array_equal(masks[f"classes{batch}"], classes[:batch])


def test_the_file_is_as_documented(workdirs, tmp_path, monkeypatch, capsys):
    file = tmp_path / "plain.zip"
    words = ("--workdir", workdirs / "plain", "--out", file, "--step", 3)
    exported(monkeypatch, *words)
    printed = capsys.readouterr().out
    lines = documented_lines()
    assert lines in printed and lines == pathlib.Path(loader.__file__).read_text()
    assert "Wrote" in printed and "input  images: uint8 (batch, 32, 32, 3)" in printed
    with zipfile.ZipFile(file) as parts:
        names = ["program.stablehlo", "metadata.json", "load.py"]
        assert parts.namelist() == names and parts.testzip() is None
        assert parts.read("load.py").decode() == lines
        about = json.loads(parts.read("metadata.json"))
        program = jax_export.deserialize(bytearray(parts.read("program.stablehlo")))
    config = json.loads((workdirs / "plain" / "config.json").read_text())["config"]
    assert about["model"] == config["model"] and about["class_names"] == [*NAMES]
    assert (about["step"], about["weights"], about["format"]) == (3, "raw", 1)
    assert about["jax"] == jax.__version__
    assert about["platforms"] == list(program.platforms) == ["cpu", "cuda", "tpu"]
    assert about["calling_convention_version"] == program.calling_convention_version
    # Of a StableHLO of four weeks before, for readers that are somewhat older.
    requirement = stablehlo.StablehloCompatibilityRequirement.WEEK_4
    version = stablehlo.get_version_from_compatibility_requirement(requirement)
    assert about["stablehlo_version"] == version
    given = jax.tree.unflatten(program.out_tree, program.out_avals)
    assert {
        a["name"]: (a["dtype"], *map(str, a["shape"])) for a in about["outputs"]
    } == {
        name: (str(spec.dtype), *map(str, spec.shape)) for name, spec in given.items()
    }
    assert "resized" in about["inputs"][0]["meaning"]
    assert "short side to 36" in about["preprocessing"]["before"]


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
    with pytest.raises(ValueError) as error:
        loader.load(file)
    assert str(error.value) == (
        f"{file}: JAX {jax.__version__} does not read what JAX 0.7.2 exported: export "
        "the network again, or install that JAX"
    )


# --------------------------------------------------------------------------- options


def test_the_same_network_makes_the_same_file(workdirs, tmp_path, monkeypatch):
    files, local = (tmp_path / "one.zip", tmp_path / "two.zip"), time.localtime
    for i, file in enumerate(files):
        # As if it were a day later; files of a ZIP archive have the local time.
        now = local(1e9 + 86400 * i)
        monkeypatch.setattr(time, "localtime", lambda *_, now=now: now)
        exported(monkeypatch, "--workdir", workdirs / "plain", "--out", file)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_a_classifier_takes_images_of_any_size(workdirs, tmp_path, monkeypatch):
    file = tmp_path / "any.zip"
    words = ("--workdir", workdirs / "plain", "--out", file, "--input_size", "any")
    exported(monkeypatch, *words)
    serve, about = loader.load(file)
    assert about["inputs"][0]["shape"] == ["batch", "height", "width", 3]
    assert "short side to 36" in about["preprocessing"]["inside"]
    predictor = load(workdirs / "plain")
    for batch, height, width in ((3, 57, 40), (2, 36, 90)):
        images = photographs(batch, height, width)
        expected = logits_of(predictor, center_crop(images, 32, 36))
        # A level at just about a half may be rounded otherwise; a crop that is a pixel
        # off is far beyond it.
        np.testing.assert_allclose(serve(images)["logits"], expected, atol=2e-3)
        shifted = logits_of(predictor, center_crop(images[:, :-2, :-2], 32, 36))
        assert np.abs(shifted - expected).max() > 1e-2


@pytest.mark.slow
def test_masks_are_of_the_images_own_size(workdirs, tmp_path, monkeypatch):
    file = tmp_path / "masks.zip"
    words = ("--workdir", workdirs / "segmenter", "--out", file)
    exported(monkeypatch, *words, "--input_size", "any")
    serve, about = loader.load(file)
    assert [array["name"] for array in about["inputs"]] == ["images"]
    images = photographs(2, 24, 40)
    classes = np.asarray(serve(images)["classes"])
    assert classes.dtype == np.uint8
    predictor = load(workdirs / "segmenter")
    canvas = np.zeros((2, 32, 48, 3), np.uint8)
    canvas[:, :24, :40] = images
    expected, *_ = jax.jit(
        lambda v, x, sizes: predictor.task.predict(
            lambda x: predictor.model.apply(v, x, train=False), x, sizes
        )
    )(weights_of(predictor), canvas, np.full((2, 2), (24, 40), np.int32))
    np.testing.assert_array_equal(classes, expected[:, :24, :40])
    with pytest.raises(ValueError):  # beyond the canvas
        serve(photographs(1, 33, 40))
    # Of one size, the same.
    known = program.make_program(predictor, (24, 40), logits=True)
    shapes = jax.eval_shape(known.function, known.variables, images)
    assert shapes["classes"].shape == (2, 24, 40)
    assert shapes["logits"].shape == (2, 24, 40, 5)


def test_type_and_platforms(workdirs, tmp_path, monkeypatch):
    file, images = tmp_path / "half.zip", photographs(3, 32, 32)
    words = ("--workdir", workdirs / "plain", "--out", file, "--dtype", "bfloat16")
    exported(monkeypatch, *words, "--platforms", "cpu")
    serve, about = loader.load(file)
    assert about["model"]["dtype"] == "bfloat16" and about["platforms"] == ["cpu"]
    found = np.asarray(serve(images)["logits"])
    assert found.dtype == np.float32
    whole = logits_of(load(workdirs / "plain"), images)
    assert 1e-4 < np.abs(found - whole).max() < 0.1 * np.abs(whole).max()


@pytest.mark.slow
@needs_tpu_compiler
def test_tpus_can_compile_it(workdirs, tmp_path, monkeypatch):
    file = tmp_path / "classifier.zip"
    exported(monkeypatch, "--workdir", workdirs / "classifier", "--out", file)
    compiling = f"""
import sys
import jax
from vt_flax.inference import loader
from vt_flax.plan.tpu_compiler import tpu_devices

device = jax.sharding.SingleDeviceSharding(tpu_devices(sys.argv[1])[0])
images = jax.ShapeDtypeStruct((3, 32, 32, 3), "uint8", sharding=device)
program, _ = loader.load({str(file)!r})
compiled = program.lower(images).compile().as_text()
print("f32[3,5]" in compiled, "tpu_custom_call" in compiled)
"""
    # What it gives, and no kernels of Pallas.
    assert run_program(compiling, "v5e:2x2") == "True False"


# ------------------------------------------------------------------------ TensorFlow


CANNOT_RUN = r"TensorFlow \S+ cannot run what JAX \S+ writes for it"


def tensorflow_runs_what_jax_writes() -> bool:
    tf, bridge = tensorflow(), tensorflow_bridge()
    program = tf.function(
        bridge.convert(lambda x: x + 1, polymorphic_shapes=["b"]),
        [tf.TensorSpec([None])],
        autograph=False,
    )
    try:
        program(tf.ones(2))
    except tf.errors.OpError:
        return False
    return True


def test_a_saved_model_that_tensorflow_cannot_run_is_not_left(
    refused, tmp_path, monkeypatch
):
    tf = tensorflow()

    def serve(**arrays):
        assert arrays["images"].shape[0] == 1
        raise tf.errors.InvalidArgumentError(None, None, "unregistered operation")

    loaded = types.SimpleNamespace(signatures={"serving_default": serve})
    monkeypatch.setattr(tf.saved_model, "load", lambda folder: loaded)
    assert re.search(CANNOT_RUN, refused("--kind", "savedmodel", out="out"))


def test_a_saved_model_is_the_network(workdirs, refused, tmp_path, monkeypatch):
    tf = tensorflow()
    if not tensorflow_runs_what_jax_writes():
        assert re.search(CANNOT_RUN, refused("--kind", "savedmodel", out="out"))
        pytest.skip(f"TensorFlow {tf.__version__} runs no JAX {jax.__version__}")
    out = tmp_path / "serving" / "1"
    out.parent.mkdir()
    words = ("--workdir", workdirs / "plain", "--out", out, "--kind", "savedmodel")
    exported(monkeypatch, *words)
    about = json.loads((out / "assets.extra" / "metadata.json").read_text())
    assert (about["kind"], about["step"]) == ("savedmodel", 7)
    images = photographs(3, 32, 32)
    expected = logits_of(load(workdirs / "plain"), images)
    serve = tf.saved_model.load(str(out)).signatures["serving_default"]
    for batch in (1, 3):
        found = serve(images=tf.constant(images[:batch]))
        assert sorted(found) == ["logits", "probabilities"]
        np.testing.assert_allclose(found["logits"], expected[:batch], atol=1e-5)


# -------------------------------------------------------------------------- bad input


@pytest.fixture
def refused(workdirs, tmp_path, monkeypatch, capsys):
    """Runs what must end with one line and status 2, and write nothing."""

    def run(*arguments, workdir="plain", out="out.zip"):
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        words = ("--workdir", workdirs / workdir, "--out", tmp_path / out, *arguments)
        with pytest.raises(SystemExit) as stop:
            exported(monkeypatch, *words)
        assert stop.value.code == 2
        printed = capsys.readouterr()
        line = printed.err.strip()
        assert line.startswith("error: ") and "\n" not in line and not printed.out
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
        return line

    return run


def test_bad_arguments_are_one_line(refused):
    assert "holds no run" in refused(workdir="nowhere")
    assert "no checkpoint of step 4: choose from 3, 7" in refused("--step", 4)
    assert "best holds no checkpoint yet" in refused("--best")
    assert "missing is not there: make it" in refused(out="missing/out.zip")
    line = refused("--platforms", "cpu,gpu")
    assert "'gpu' is not known; choose from cpu, cuda, rocm, tpu" in line
    assert "name each once" in refused("--platforms", "cpu,cpu")
    for size in ("224", "0x8", "00x5", "5x00", "8x8x3"):
        assert "write HxW" in refused("--input_size", size)
    line = refused("--input_size", f"{'9' * 20}x5")
    assert line.endswith("9x5: must be at most 65536")
    assert "a classifier's program gives them" in refused("--logits")
    assert "'float8' is not known" in refused("--dtype", "float8")
    line = refused("--input_size", "33x48", workdir="segmenter")
    assert "the evaluation's canvas of 32x48" in line
    assert "invalid choice: 'onnx'" in refused("--kind", "onnx")
    assert "unexpected argument '--weight'" in refused("--weight", "raw")
    assert "buckets are not supported" in refused("--out", "gs://bucket/out.zip")
    assert "File name too long" in refused(out="o" * 300)


def test_nothing_is_written_over_unasked(refused, tmp_path):
    (tmp_path / "out.zip").write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    assert "choose another name, or add --overwrite" in refused()
    assert "is not a file" in refused("--overwrite", out="folder")
    words = ("--overwrite", "--kind", "savedmodel")
    assert "is no SavedModel" in refused(*words, out="folder")
    assert "is no SavedModel" in refused(*words)
    assert (tmp_path / "out.zip").read_text() == "mine"


def test_a_full_disk_leaves_what_was_there(refused, tmp_path, monkeypatch):
    (tmp_path / "out.zip").write_text("mine")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "writestr", full)
        assert "out.zip: No space left on device" in refused("--overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["out.zip"]
    assert (tmp_path / "out.zip").read_text() == "mine"


def test_a_folder_is_replaced_or_stays(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(FileNotFoundError):
        exporting._put(out, lambda partial: None)  # which leaves nothing to put there
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]

    def write(partial):
        partial.mkdir()
        (partial / "new").write_text("new!")

    assert exporting._put(out, write) == 4
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_a_folder_is_replaced_by_whatever_name(tmp_path, monkeypatch):
    def write(partial):
        partial.mkdir()
        (partial / "new").write_text("new")

    out, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(out)
    for spelling in (".", "../link", "../out/../out"):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / "old").write_text("old")
        monkeypatch.chdir(out)
        assert exporting._put(pathlib.Path(spelling), write) == 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]
        assert [path.name for path in out.iterdir()] == ["new"]
        assert link.is_symlink()


def test_the_command_knows_all_kinds():
    assert set(export.KINDS) == set(exporting.WRITERS)
