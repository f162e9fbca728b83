"""The package from Python, and the list of its commands."""

import subprocess
import sys

import pytest
from ml_collections import ConfigDict
from pods import SMALL

import vt_flax
from vt_flax import __main__
from vt_flax.errors import UserError
from vt_flax.training.workdir import read_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, digits):
    return tmp_path_factory.mktemp("runs") / "small"


@pytest.fixture(scope="module")
def results(workdir, digits):
    overrides = SMALL | {"data.data_dir": digits, "duration": "2 steps"}
    lines = [f"--config.{key}={value}" for key, value in overrides.items()]
    return vt_flax.train("configs/quickstart.py", workdir, lines)


@pytest.mark.slow
def test_an_evaluation_gives_the_results_of_the_training(workdir, results):
    assert {*results} == {"raw", "ema"} and results["raw"]["examples"] > 0
    assert vt_flax.evaluate(str(workdir)) == results
    few = vt_flax.evaluate(workdir, ["--config.data.eval_split=test[:10]"], step=2)
    assert few["raw"]["examples"] == 10


@pytest.mark.slow
def test_a_resumed_training_gives_them_too(workdir, results):
    config = ConfigDict(read_run(workdir).config)
    assert vt_flax.train(config, workdir) == results


@pytest.mark.slow
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda at: vt_flax.train("none.py", at), "none.py"),
        (lambda at: vt_flax.evaluate(at / "none"), "holds no run"),
        (lambda at: vt_flax.evaluate(at, step=7), "has no checkpoint of step 7"),
        (lambda at: vt_flax.evaluate(at, ["--config.sed=1"]), "did you mean seed"),
    ],
)
def test_bad_input(call, message, workdir, results):
    with pytest.raises(UserError, match=message):
        call(workdir)


def test_names_are_imported_when_used():
    program = (
        "import sys, vt_flax\n"
        "assert 'jax' not in sys.modules\n"
        "assert all(getattr(vt_flax, name) for name in dir(vt_flax))\n"
        "vt_flax.nothing\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert b"has no attribute 'nothing'" in done.stderr.splitlines()[-1]


def test_help_lists_every_command(capsys):
    __main__.dispatch([])
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in __main__.COMMANDS)


def test_the_command(tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "vt_flax", *words]
        return subprocess.run(command, capture_output=True, text=True)

    assert run("--version").stdout == f"{vt_flax.__version__}\n"
    done = run("train", "--config", "none.py", "--workdir", str(tmp_path / "run"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --config none.py: there is no such file, ")
    assert done.stderr.count("\n") == 1
    with pytest.raises(UserError, match="trian: no such command; did you mean train"):
        __main__.dispatch(["trian"])
