"""A wheel, made of a source distribution, works where there is no checkout."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import safetensors.numpy
from kills import LONG
from PIL import Image
from pods import ROOT, arguments, quick

from vt_flax.__main__ import COMMANDS
from vt_flax.cli.startup import TRAINING
from vt_flax.inference.predictor import load
from vt_flax.training.config import load_config
from vt_flax.version import __version__

pytestmark = pytest.mark.slow

FILES = [
    *("setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"),
    *("BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md"),
]
FOLDERS = "vt_flax configs launch tests docs".split()
MODULES = [path.relative_to(ROOT) for path in (ROOT / "vt_flax").rglob("*.py")]
DATA_FILES = [
    pathlib.Path("vt_flax/data/imagenet_classes.txt"),
    pathlib.Path("vt_flax/py.typed"),
    pathlib.Path("vt_flax/data/imagenet_classes.txt"),
    pathlib.Path("vt_flax/viz/page.html.j2"),
]
CONFIGS = [path.relative_to(ROOT) for path in (ROOT / "configs").glob("*.py")]

# An editable installation in this environment would lend what the wheel lacks.
HIDE_CHECKOUTS = """
import pathlib, sys
sys.meta_path[:] = [
    finder for finder in sys.meta_path
    if not getattr(finder, "__module__", "").startswith("__editable__")
]
sys.path[:] = [
    path for path in sys.path
    if not (pathlib.Path(path) / "setup.cfg").is_file()
]
"""

# Of every command the help, and of one the work.
HELP = """
import importlib.metadata, json, sys
import vt_flax.__main__
for name in sys.argv[1:]:
    try:
        vt_flax.__main__.dispatch([name, "--help"])
    except SystemExit as end:
        assert not end.code
vt_flax.__main__.dispatch(["summarize", "vt_resnet18", "--format", "json"])
print(json.dumps({
    "places": sorted(
        module.__file__ for name, module in sys.modules.items()
        if name.partition(".")[0] == "vt_flax"
    ),
    "versions": [vt_flax.__version__, importlib.metadata.version("vt_flax")],
}))
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> pathlib.Path:
    """A source distribution of this checkout."""
    pytest.importorskip("setuptools", minversion="77")
    # To build leaves files beside the sources.
    copy = tmp_path_factory.mktemp("sources")
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    program = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", program], cwd=copy, check=True)
    (found,) = (copy / "dist").glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def installed(sdist, tmp_path_factory) -> pathlib.Path:
    """A folder with nothing but the wheel's content."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index"),
            *("--no-deps", "--no-build-isolation", "--no-compile"),
            *("--disable-pip-version-check", "--target", folder, sdist),
        ],
        check=True,
    )
    return folder


@pytest.fixture
def run(tmp_path, tmp_path_factory):
    """Returns a function that runs Python in an empty folder, without the checkout."""
    hiding = tmp_path_factory.mktemp("hiding")
    (hiding / "sitecustomize.py").write_text(HIDE_CHECKOUTS)

    def runner(*words: str, path: pathlib.Path | None = None):
        paths = os.pathsep.join(str(p) for p in (hiding, path) if p)
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=os.environ | quick(1) | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return runner


def test_a_source_distribution_can_be_tested(sdist):
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    expected = {"launch/test.sh", "docs/chart.png", "tests/helpers/pods.py"}
    assert {*FILES, *expected} <= files
    assert {path.as_posix() for path in (*MODULES, *DATA_FILES, *CONFIGS)} <= files
    assert not any("__pycache__" in name for name in files)


def test_a_wheel_holds_the_modules_and_the_configurations(installed):
    found = {path.relative_to(installed) for path in installed.glob("vt_flax/**/*")}
    files = {path for path in found if (installed / path).is_file()}
    configs = ("vt_flax" / path for path in CONFIGS)
    assert files == {*MODULES, *DATA_FILES, *configs}
    assert {path.name for path in installed.iterdir()} == {
        "bin",
        "vt_flax",
        f"vt_flax-{__version__}.dist-info",
    }


def test_without_the_wheel_there_is_nothing(run):
    """So what works below works by it alone."""
    assert "No module named 'vt_flax'" in run("-c", "import vt_flax").stderr


def test_every_command_is_there(installed, run):
    done = run("-c", HELP, *COMMANDS, path=installed)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"usage: vt_flax {name}" in done.stdout
    told = json.loads(done.stdout.splitlines()[-1])
    assert all(place.startswith(str(installed)) for place in told["places"])
    assert told["versions"] == [__version__, __version__]


def test_training_in_an_empty_folder(installed, digits, run, tmp_path):
    changes = LONG | {"data.data_dir": digits, "duration": "2 steps"}
    words = arguments("run", changes)
    done = run("-m", "vt_flax", "train", *words, path=installed)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    # Where the package lies is to be seen nowhere.
    written = (tmp_path / "run" / "config.json").read_text()
    assert str(installed) not in written
    expected = load_config(f"{ROOT}/{words[1]}", words[4:])
    content = json.loads(written)
    assert content["config"] == expected.to_dict()
    assert content["vt_flax"] == __version__


# ----------------------------------------------------------------------- without extras

# Reads commands; prints their statuses, outputs and errors, and what Python gets.
CORE = f"""
import contextlib, importlib.util, io, json, sys
import jax, numpy as np, PIL.Image
import vt_flax
from vt_flax.__main__ import main

def command(words):
    sys.argv, status = ["vt_flax", *words], 0
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                main()
            except SystemExit as stop:
                status = stop.code
    return status, out.getvalue(), err.getvalue()

present = [name for name in {TRAINING} if importlib.util.find_spec(name)]
model = vt_flax.create_model("vt_resnet18", num_classes=10)
variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
results = [command(words) for words in json.load(sys.stdin)]
(prediction,) = vt_flax.load("out").predict(PIL.Image.open("image.png"))
print(json.dumps([present, parameters, results, prediction.scores]))
"""


@pytest.fixture(scope="module")
def core(sdist, tmp_path_factory):
    """A Python with the package and what it requires without extras."""
    try:
        socket.create_connection(("pypi.org", 443), timeout=5).close()
    except OSError as error:
        pytest.skip(f"needs PyPI: {error}")
    folder = tmp_path_factory.mktemp("core")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    uv = [folder / "bin" / "uv", "pip", "install", "--quiet", "--python", python]
    subprocess.run([*uv, sdist], check=True)
    yield python
    shutil.rmtree(folder)


def torchvision_resnet(path: pathlib.Path) -> None:
    """Writes a narrow ResNet of four blocks by torchvision's names."""
    rng = np.random.default_rng(0)
    arrays = {"fc.weight": rng.normal(size=(10, 32)), "fc.bias": rng.normal(size=10)}

    def add(conv: str, norm: str, shape: tuple[int, ...]) -> None:
        arrays[f"{conv}.weight"] = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        for name in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{norm}.{name}"] = rng.uniform(0.5, 1, shape[0])

    add("conv1", "bn1", (4, 3, 7, 7))
    for stage, (inputs, outputs) in enumerate([(4, 4), (4, 8), (8, 16), (16, 32)], 1):
        block = f"layer{stage}.0"
        add(f"{block}.conv1", f"{block}.bn1", (outputs, inputs, 3, 3))
        add(f"{block}.conv2", f"{block}.bn2", (outputs, outputs, 3, 3))
        if inputs != outputs:
            names = f"{block}.downsample.0", f"{block}.downsample.1"
            add(*names, (outputs, inputs, 1, 1))
    float32 = {name: array.astype(np.float32) for name, array in arrays.items()}
    safetensors.numpy.save_file(float32, path)


@pytest.mark.timeout(900)
def test_the_core_alone_serves_models_and_weights(core, tmp_path):
    """Imports weights, predicts as this environment does, and names what is missing."""
    torchvision_resnet(tmp_path / "weights.safetensors")
    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    tiny = ("--set", "stage_sizes=[1,1,1,1]", "--set", "width=4", "--num_classes", "10")
    config = f"{ROOT}/configs/quickstart.py"
    commands = [
        (*("import_weights", "weights.safetensors", "--model", "resnet18"), *tiny)
        + ("--out", "out"),
        ("predict", "--workdir", "out", "image.png"),
        ("train", "--config", config, "--workdir", "run"),
        ("prepare_data", "cifar10", "--data_dir", "data"),
        ("predict", "--workdir", "out", "--out", "pictures", "image.png"),
    ]
    done = subprocess.run(
        [core, "-c", CORE],
        input=json.dumps(commands),
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | quick(1),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    present, parameters, results, scores = json.loads(done.stdout)
    (expected,) = load(str(tmp_path / "out")).predict(image)
    assert not present and parameters > 1e6
    assert [name for name, _ in scores] == [name for name, _ in expected.scores]
    np.testing.assert_allclose(
        *([p for _, p in s] for s in (scores, expected.scores)), 1e-5
    )
    assert [status for status, _, _ in results] == [0, 0, 2, 2, 2], results
    assert scores[0][0] in results[1][1]
    for _, _, error in results[2:]:
        assert error.count("\n") == 1, error
        assert "pip install" in error and "vt_flax[train]" in error
