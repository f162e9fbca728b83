"""The notebooks of launch/notebooks, from top to bottom, with less to do.

`bash launch/notebooks.sh` runs them as they are, in a fresh environment.
"""

import fnmatch
import glob
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

import jax
import nbclient
import nbformat
import pytest
from packaging.requirements import Requirement
from pods import ROOT, quick
from tpu_programs import needs_tpu_compiler

from vt_flax.training.workdir import read_metrics

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
        # Where there is an accelerator, the first cell would install what JAX lacks.
        environment["PIP_DRY_RUN"] = "1"
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
    assert "init_from: missing, so initialized afresh: head" in printed
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
    first, second = (cell.source for cell in code(book)[:2])
    if name == "plan_a_pod":
        first = first.replace(
            'extras, wanted = {"tpu"}, []', "extras, wanted = set(), []"
        )
    assert [first, second] == [c.source for c in code(BOOKS["tokens"])[:2]]
    # What a reader should know before running the first cell.
    first_words, words = (
        c.source.split("In Colab:")[1]
        for c in (BOOKS["tokens"].cells[0], book.cells[0])
    )
    assert words.startswith(first_words)


# -------------------------------------------------------------------------- installing


TPU_VARIABLES = ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Returns a function that runs a first cell; it returns what pip is asked for.

    Where `there` are the distributions, commands and devices of the machine.
    """

    def run(name="tokens", *there, source="", variables=()):
        asked = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PATH", os.environ["PATH"])
        for variable in TPU_VARIABLES:
            monkeypatch.delenv(variable, raising=False)
        for variable in variables:
            monkeypatch.setenv(variable, "there")
        monkeypatch.setattr(
            "importlib.metadata.distributions", lambda name: {name} & {*there}
        )
        monkeypatch.setattr(shutil, "which", lambda name: {name} & {*there})
        monkeypatch.setattr(glob, "glob", lambda words: fnmatch.filter(there, words))
        monkeypatch.setattr(subprocess, "run", lambda words, check: asked.append(words))
        text = code(BOOKS[name])[0].source
        changed = text.replace('SOURCE = ""', f"SOURCE = {source!r}")
        exec(changed, {})
        # What commands of the notebook are run by.
        first = os.environ["PATH"].split(os.pathsep)[0]
        assert first == os.path.dirname(sys.executable)
        if not asked:
            return []
        assert asked[0][:5] == [sys.executable, "-m", "pip", "install", "--quiet"]
        return asked[0][5:]

    return run


def path_in(text):
    """Returns a requirement without its URL, and the URL's path."""
    found = Requirement(text)
    path = pathlib.Path(urllib.parse.unquote(urllib.parse.urlsplit(found.url).path))
    return f"{found.name}[{','.join(sorted(found.extras))}]", path


def test_a_wheel_beside_the_notebook_is_installed(install, tmp_path):
    for version in ("0.1.0", "0.2.0"):
        (tmp_path / f"vt_flax-{version}-py3-none-any.whl").touch()
    newest = tmp_path / "vt_flax-0.2.0-py3-none-any.whl"
    (wanted,) = install()
    assert path_in(wanted) == ("vt_flax[]", newest)
    (wanted,) = install("plan_a_pod")
    assert path_in(wanted) == ("vt_flax[tpu]", newest)
    wanted, cuda = install("tokens", "nvidia-smi", "jax-cuda12-plugin")
    assert (path_in(wanted), cuda) == (("vt_flax[]", newest), "jax[cuda12]")


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ((), []),
        (("nvidia-smi",), ["vt_flax[cuda]"]),
        # As in Colab: CUDA 13 beside it needs a newer driver.
        (("nvidia-smi", "jax-cuda12-plugin"), ["vt_flax[]", "jax[cuda12]"]),
        (("/dev/accel0",), ["vt_flax[tpu]"]),
        (("/dev/vfio/0", "/dev/vfio/vfio"), ["vt_flax[tpu]"]),
        # A laptop's neural processor; virtual machines.
        (("/dev/accel", "/dev/vfio/vfio"), []),
    ],
)
def test_what_an_accelerator_lacks_is_installed(install, there, wanted):
    """With vt_flax installed, pip is asked again only for an accelerator's packages."""
    assert install("tokens", "vt_flax", *there) == wanted
    extras = sorted({"tpu", *Requirement(wanted[0]).extras} if wanted else {"tpu"})
    pod = [f"vt_flax[{','.join(extras)}]", *wanted[1:]]
    assert install("plan_a_pod", "vt_flax", *there) == pod


@pytest.mark.parametrize("variable", TPU_VARIABLES)
def test_a_tpu_is_known_by_its_variables(install, variable):
    assert install("tokens", "vt_flax", variables=[variable]) == ["vt_flax[tpu]"]


def test_what_was_imported_before_asks_for_a_restart(install, monkeypatch, capsys):
    """Also if this run installs nothing: the one before it may have."""
    monkeypatch.setattr(jax, "__version__", "0.7.2")
    with pytest.raises(SystemExit) as stop:
        install("tokens", "vt_flax")
    assert str(stop.value) == "Runtime > Restart session, then run this cell again"
    assert "before they were replaced: jax.\n" in capsys.readouterr().out


def test_a_notebook_in_a_checkout_installs_that(install, tmp_path, monkeypatch):
    checkout = tmp_path / "my checkout"
    (checkout / "launch" / "notebooks").mkdir(parents=True)
    (checkout / "vt_flax").mkdir()
    (checkout / "vt_flax" / "cli").touch()
    monkeypatch.setattr(pathlib.Path, "cwd", lambda: checkout / "launch" / "notebooks")
    (wanted,) = install()
    assert path_in(wanted) == ("vt_flax[]", checkout)


def test_what_source_names_is_installed(install, tmp_path):
    (tmp_path / "vt_flax-0.1.0-py3-none-any.whl").touch()
    url = "git+https://example.com/someone/vt_flax"
    assert install(source=url) == [f"vt_flax[] @ {url}"]
    (wanted,) = install(source="sources")
    assert path_in(wanted) == ("vt_flax[]", tmp_path / "sources")


def test_without_a_package_it_says_what_to_do(install):
    with pytest.raises(SystemExit, match="upload its wheel, or set SOURCE above"):
        install()
