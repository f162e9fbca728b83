"""A wheel, made of a source distribution, works where there is no checkout."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tarfile

import pytest
from kills import LONG
from pods import ROOT, arguments, quick

from vt_flax.__main__ import COMMANDS
from vt_flax.training.config import load_config
from vt_flax.training.workdir import read_metrics
from vt_flax.version import __version__

pytestmark = pytest.mark.slow

FILES = [
    *("setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"),
    *("BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md"),
]
FOLDERS = "vt_flax configs launch tests docs".split()
MODULES = [path.relative_to(ROOT) for path in (ROOT / "vt_flax").rglob("*.py")]
DATA_FILES = [
    pathlib.Path("vt_flax/py.typed"),
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


# --------------------------------------------------------------------------- in Colab

# What matters here of a Colab runtime's packages, and a date for the others' releases.
# grpcio-status stands for those that ask for an older protobuf than vt_flax does.
COLAB = [
    *("jax==0.7.2", "jaxlib==0.7.2", "flax==0.11.2", "optax", "orbax-checkpoint"),
    *("tensorflow==2.20.*", "tensorflow-datasets", "tensorflow-metadata"),
    *("protobuf==5.29.5", "grpcio-status==1.71.2"),
]
COLAB_DATE = "2025-11-15"

# Runs the first two code cells of a notebook, where some modules are imported already.
CELLS = """
import importlib, json, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
cells = [c for c in json.load(open(sys.argv[1]))["cells"] if c["cell_type"] == "code"]
for cell in cells[:2]:
    exec("".join(cell["source"]), globals())
# The requirements of vt_flax, and theirs.
from packaging.requirements import Requirement
needed, queue = set(), ["vt_flax"]
while queue:
    name = queue.pop().lower().replace("_", "-")
    if name not in needed:
        needed.add(name)
        for text in metadata.requires(name) or ():
            found = Requirement(text)
            if not found.marker or found.marker.evaluate({"extra": ""}):
                queue.append(found.name)
with open("needed.json", "w") as file:
    json.dump(sorted(needed), file)
"""


@pytest.fixture
def colab(tmp_path_factory):
    """An environment as Colab's; its gigabytes are removed afterwards."""
    if sys.version_info < (3, 12):
        pytest.skip("Colab has a newer Python than this one")
    try:
        socket.create_connection(("pypi.org", 443), timeout=5).close()
    except OSError as error:
        pytest.skip(f"needs PyPI: {error}")
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "uv", "packaging"], check=True)
    uv = [folder / "bin" / "uv", "pip", "install", "--quiet", "--python", folder]
    subprocess.run([*uv, "--exclude-newer", COLAB_DATE, *COLAB], check=True)
    yield folder / "bin" / "python"
    shutil.rmtree(folder)


@pytest.mark.timeout(1800)
def test_the_first_cell_of_a_notebook_in_colab(sdist, colab, tmp_path):
    """It installs the wheel, asks for a restart, and then training works."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    words = ("--no-build-isolation", "--wheel-dir", tmp_path, sdist)
    subprocess.run([*build, *words], check=True)
    book = ROOT / "launch" / "notebooks" / "train_and_inspect.ipynb"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | quick(1)

    def run(*words):
        return subprocess.run(
            [colab, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )

    done = run("-c", CELLS, book, "jax")
    assert done.returncode == 1, done.stderr[-2000:]
    assert done.stderr.endswith("Runtime > Restart session, then run this cell again\n")
    assert "Imported before they were replaced: jax." in done.stdout
    conflicts = re.findall(r"^(\S+) \S+ requires .*, but you have", done.stderr, re.M)
    assert "grpcio-status" in conflicts
    assert "'NAME requires ..., but you have ...': that is\nexpected" in done.stdout

    done = run("-c", CELLS, book)
    assert done.returncode == 0, done.stderr[-2000:]
    # Nothing is installed again, and what is there is new.
    (said,) = done.stdout.splitlines()
    version = tuple(map(int, re.search(r"JAX (\d+)\.(\d+)", said).groups()))
    assert version >= (0, 10)
    needed = json.loads((tmp_path / "needed.json").read_text())
    assert {"vt-flax", "jax", "protobuf"} <= {*needed} and not {*needed} & {*conflicts}

    changes = LONG | {"data.data_dir": tmp_path / "tfds", "duration": "3 steps"}
    done = run("-m", "vt_flax", "train", *arguments("run", changes))
    assert done.returncode == 0, done.stderr[-2000:]
    last = read_metrics(tmp_path / "run")[-1]
    assert (last["kind"], last["step"]) == ("eval", 3)
