"""The notebooks of launch/notebooks, from top to bottom, with less to do.

`bash launch/notebooks.sh` runs them as they are, in a fresh environment.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

import nbclient
import nbformat
import pytest
from pods import ROOT, quick
from tpu_programs import needs_tpu_compiler

from vt_flax.training.logging import read_metrics

pytestmark = pytest.mark.slow

FOLDER = ROOT / "launch" / "notebooks"
BOOKS = {path.stem: nbformat.read(path, 4) for path in FOLDER.glob("*.ipynb")}


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where notebooks run one after the other."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture
def ran(folder, digits):
    """Returns a function that runs a notebook with other parameters.

    Something more may be put behind a place in a cell. It gives what cells have
    printed, and how many pictures they have shown.
    """

    def run(name, place="", more="", **parameters):
        book = nbformat.read(FOLDER / f"{name}.ipynb", 4)
        if more:
            (found,) = (cell for cell in code(book) if place in cell.source)
            found.source = found.source.replace(place, place + more)
        for key, value in parameters.items():
            lines = re.compile(rf"^{key} = .*  # @param", flags=re.M)
            found = [cell for cell in code(book) if lines.search(cell.source)]
            assert len(found) == 1, key
            found[0].source = lines.sub(f"{key} = {value!r}  # @param", found[0].source)
        # As TFDS has it by default, so that no dataset is prepared again.
        environment = os.environ | quick(1) | {"TFDS_DATA_DIR": digits}
        resources = {"metadata": {"path": str(folder)}}
        client = nbclient.NotebookClient(
            book, timeout=300, kernel_name="python3", resources=resources
        )
        client.execute(env=environment)
        outputs = [output for cell in code(book) for output in cell.outputs]
        # Tables are displayed, in HTML and as text.
        printed = "".join(o.get("text", "") or o.data["text/plain"] for o in outputs)
        pictures = sum("image/png" in o.get("data", {}) for o in outputs)
        return printed, pictures

    return run


def last_evaluation(workdir):
    return [r for r in read_metrics(workdir) if r["kind"] == "eval"][-1]


def test_train_and_inspect(ran, folder):
    less = " --config.model.stage_sizes=[1,1,1,2] --config.log.tensorboard=False"
    place = '--config.duration="$DURATION"'
    printed, pictures = ran("train_and_inspect", place, less, DURATION="2 steps")
    # What the callable network gets right is what evaluation has counted.
    (said,) = re.findall(r"^(\S+)% of 360 test digits are right", printed, flags=re.M)
    expected = last_evaluation(folder / "runs" / "digits")
    assert float(said) == pytest.approx(expected["ema_top1"], abs=0.006)
    assert pictures == 4


def test_tokens(ran, folder):
    """Goes on with the network that is there: see the test before."""
    if not (folder / "runs" / "digits" / "config.json").exists():
        pytest.skip("test_train_and_inspect has left no network")
    printed, pictures = ran("tokens", RUN="runs/digits")
    assert "step 2 of runs/digits, ema weights" in printed
    assert "training steps" not in printed
    assert "module1: static, (8, 1, 8, 8, 8), sums from 1.0000" in printed
    assert "module2: dynamic, (8, 16, 4, 8, 8), sums from " in printed
    assert (folder / "runs/digits/tokens/tokens.json").exists()
    # Of the whole; of the heads of one module; two charts.
    assert pictures == 4


def test_fine_tune(ran, folder):
    less = """
    config.model.stage_sizes = [1, 1, 1, 2]
    config.model.width = 8
    config.model.token_channels = 32
    config.model.heads = 4
    config.eval.batch_size = 256
    config.log.tensorboard = False"""
    place = 'config.ema = ConfigDict({"decay": 0.9})'
    printed, pictures = ran("fine_tune", place, less, STEPS=1, FIRST_STEPS=1, SIZE=16)
    assert "init_from: not in there, so made anew: head" in printed
    for name in ("tuned", "scratch"):
        expected = last_evaluation(folder / "runs" / name)
        said = f"{name}: {expected['ema_top1']:.2f} % of 509 test images"
        assert expected["ema_examples"] == 509 and said in printed
    assert pictures == 2


@needs_tpu_compiler
def test_plan_a_pod(ran, folder):
    # For this machine, whose compiler is done sooner.
    parameters = {"CONFIG": "configs/quickstart.py", "TOPOLOGIES": "here"}
    printed, pictures = ran("plan_a_pod", **parameters, EXAMPLES=1437, PRICE=1000.0)
    (plan,) = json.loads((folder / "plans.json").read_text())
    row = next(line for line in printed.splitlines() if line.startswith("  here  "))
    assert plan["examples"] == 1437
    assert float(row.split()[-2]) == round(1000 * plan["bound_chip_hours"], 2)
    assert pictures == 1


@pytest.mark.parametrize("name", sorted(BOOKS))
def test_is_kept_as_written(name):
    """Without outputs; what runs it, and how it installs, is alike in all."""
    book = BOOKS[name]
    nbformat.validate(book)
    for cell in code(book):
        assert not cell.outputs and cell.execution_count is None
    assert book.metadata.kernelspec.name == "python3"
    assert book.cells[0].source.startswith("# ")
    own = {"plan_a_pod": (', "libtpu"', "[tpu]")}.get(name, ("", ""))
    first, second = (cell.source for cell in code(book)[:2])
    for part in filter(None, own):
        assert part in first
        first = first.replace(part, "")
    assert [first, second] == [c.source for c in code(BOOKS["tokens"])[:2]]


# -------------------------------------------------------------------------- installing


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Runs a first cell where a package is missing; returns what pip is asked for."""

    def run(name="tokens", *, source="", missing="vt_flax", chip=False):
        asked = []
        there = {"vt_flax", "libtpu"} - {missing}
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PATH", os.environ["PATH"])
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name: name in there or None
        )
        monkeypatch.setattr(shutil, "which", lambda name: name if chip else None)
        monkeypatch.setattr(subprocess, "run", lambda words, check: asked.append(words))
        text = code(BOOKS[name])[0].source
        changed = text.replace('SOURCE = ""', f"SOURCE = {source!r}")
        exec(changed, {})
        # What commands of the notebook are run by.
        first = os.environ["PATH"].split(os.pathsep)[0]
        assert first == os.path.dirname(sys.executable)
        if not asked:
            return None
        assert asked[0][:5] == [sys.executable, "-m", "pip", "install", "--quiet"]
        return asked[0][5:]

    return run


def path_in(requirement):
    name, _, url = requirement.partition(" @ ")
    return name, pathlib.Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))


def test_a_wheel_beside_the_notebook_is_installed(install, tmp_path):
    for version in ("0.1.0", "0.2.0"):
        (tmp_path / f"vt_flax-{version}-py3-none-any.whl").touch()
    (wanted,) = install()
    newest = tmp_path / "vt_flax-0.2.0-py3-none-any.whl"
    assert path_in(wanted) == ("vt_flax", newest)
    wanted, cuda = install(chip=True)
    assert (path_in(wanted), cuda) == (("vt_flax", newest), "jax[cuda12]")
    (wanted,) = install("plan_a_pod", missing="libtpu")
    assert path_in(wanted) == ("vt_flax[tpu]", newest)


def test_a_notebook_in_a_checkout_installs_that(install, tmp_path, monkeypatch):
    checkout = tmp_path / "my checkout"
    (checkout / "launch" / "notebooks").mkdir(parents=True)
    (checkout / "vt_flax").mkdir()
    (checkout / "vt_flax" / "cli.py").touch()
    monkeypatch.setattr(pathlib.Path, "cwd", lambda: checkout / "launch" / "notebooks")
    (wanted,) = install()
    assert path_in(wanted) == ("vt_flax", checkout)


def test_what_source_names_is_installed(install, tmp_path):
    (tmp_path / "vt_flax-0.1.0-py3-none-any.whl").touch()
    url = "git+https://example.com/someone/vt_flax"
    assert install(source=url) == [f"vt_flax @ {url}"]
    (wanted,) = install(source="sources")
    assert path_in(wanted) == ("vt_flax", tmp_path / "sources")


def test_nothing_is_installed_twice(install):
    assert install(missing="") is None
    assert install(missing="libtpu") is None


def test_without_a_package_it_says_what_to_do(install):
    with pytest.raises(SystemExit, match="upload its wheel, or set SOURCE above"):
        install()
