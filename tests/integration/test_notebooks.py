"""The notebooks of launch/notebooks, from top to bottom, with less to do.

Cells run in this process, without the first one, which installs the package.
`bash launch/notebooks.sh` runs the notebooks as they are, in a fresh environment.
"""

import contextlib
import json
import re

import matplotlib
import pytest
from pods import ROOT

import vt_flax
from vt_flax.errors import UserError
from vt_flax.plan.api import plan
from vt_flax.training.workdir import read_metrics

FOLDER = ROOT / "launch" / "notebooks"
BOOKS = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.ipynb")}
SMALL = {
    "model.stage_sizes": [1, 1, 1, 1],
    "model.width": 8,
    "model.token_channels": 32,
    "model.group_channels": 16,
    "model.heads": 4,
    "data.image_size": 16,
    "batch_size": 24,
    "eval.batch_size": 120,
    "log.tensorboard": False,
}
OVERRIDES = [f"--config.{key}={value}" for key, value in SMALL.items()]
# A second VT module, with the other kind of tokenizer.
TWO_MODULES = "--config.model.stage_sizes=[1,1,1,2]"


def code(name):
    """Returns the code cells of a notebook."""
    cells = BOOKS[name]["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder in which the notebooks run, one after the other."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture
def ran(folder, digits, monkeypatch, capsys):
    """Returns a function that runs a notebook with other parameters.

    It returns what the cells print, and the number of pictures that they show.
    """
    train = vt_flax.train

    def train_small(config, workdir, overrides=()):
        more = [TWO_MODULES] if workdir == "runs/digits" else []
        return train(config, workdir, [*overrides, *OVERRIDES, *more])

    monkeypatch.setattr(vt_flax, "train", train_small)
    monkeypatch.setenv("TFDS_DATA_DIR", digits)
    matplotlib.use("agg")

    def run(name, **parameters):
        shown = []
        monkeypatch.setattr("matplotlib.pyplot.show", lambda: shown.append("chart"))
        names = {"__name__": "notebook", "vt_flax": vt_flax, "display": shown.append}
        cells = "\n".join(code(name)[1:])
        for key, value in parameters.items():
            line = rf"^{key} = .*  # @param.*"
            cells, found = re.subn(line, f"{key} = {value!r}", cells, flags=re.M)
            assert found == 1, key
        with contextlib.chdir(folder):
            exec(compile(cells, f"{name}.ipynb", "exec"), names)
        return capsys.readouterr().out, len(shown)

    return run


def last_evaluation(workdir):
    return [r for r in read_metrics(workdir) if r["kind"] == "eval"][-1]


@pytest.mark.slow
def test_train_inspect_and_attend(ran, folder):
    """The second notebook takes up the network of the first."""
    printed, pictures = ran("train_and_inspect", DURATION="2 steps")
    (accuracy,) = re.findall(r"^(\S+)% of 360 test digits", printed, flags=re.M)
    expected = last_evaluation(folder / "runs" / "digits")
    assert float(accuracy) == pytest.approx(expected["ema_top1"], abs=0.006)
    assert pictures == 4
    printed, pictures = ran("tokens", RUN="runs/digits")
    assert "step 2" in printed and "training steps" not in printed
    assert "module1: static, (8, 1, 8, 4, 4), sums from 1.0000" in printed
    assert "module2: dynamic, (8, 4, 4, 4, 4), sums from " in printed
    # The mean of both modules, the heads of the second, and the entropies.
    assert pictures == 3


@pytest.mark.slow
def test_fine_tune(ran, folder, shared_steps):
    printed, pictures = ran("fine_tune", STEPS=1, FIRST_STEPS=1)
    assert "init_from: missing, so initialized afresh: head" in printed
    for name in ("tuned", "scratch"):
        expected = last_evaluation(folder / "runs" / name)
        line = f"{name}: {expected['ema_top1']:.2f} % of 106 test images"
        assert expected["ema_examples"] == 106 and line in printed
    assert pictures == 2


@pytest.mark.slow
def test_plan_a_pod(ran, tmp_path):
    """For this machine, whose compiler is quicker than the TPU's."""
    config = tmp_path / "small.py"
    lines = (ROOT / "configs" / "quickstart.py").read_text().splitlines()
    (end,) = (i for i, line in enumerate(lines) if line.startswith("    return"))
    values = [f"    config.{key} = {value!r}" for key, value in SMALL.items()]
    config.write_text("\n".join([*lines[:end], *values, lines[end]]))
    parameters = {"CONFIG": str(config), "TOPOLOGIES": "here", "EXAMPLES": 1437}
    printed, pictures = ran("plan_a_pod", **parameters, PRICE=1e6)
    assert "here: batch 24 on 8 chips\n  at least: 0.00 hours" in printed
    prices = [float(price) for price in re.findall(r"price (\S+)", printed)]
    assert 0 < prices[0] <= prices[1]
    assert pictures == 1
    with pytest.raises(UserError, match="v9:1x1"):
        plan(str(config), ["v9:1x1"])


@pytest.mark.parametrize("name", sorted(BOOKS))
def test_is_kept_as_written(name):
    """Without outputs; installed in the same way as the others, from a short cell."""
    book = BOOKS[name]
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in cells)
    assert book["cells"][0]["source"][0].startswith("# ")
    first, *others = code(name)
    assert len(first.splitlines()) <= 8
    assert first.replace("train,tpu", "train") == code("tokens")[0]
    assert f'"vt_flax-{vt_flax.__version__}-py3-none-any.whl[train' in first
    # Plain Python: neither the shell nor commands.
    assert not re.search(r"^\s*[%!]|subprocess|os\.system", "\n".join(others), re.M)
