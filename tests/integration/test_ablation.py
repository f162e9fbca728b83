"""launch/ablation.sh: what it would run, and a real run that is stopped and goes on."""

import os
import pathlib
import platform
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from forked_python import Starter
from pods import quick

from vt_flax.training.config import load_config
from vt_flax.training.workdir import read_metrics

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ["bash", "launch/ablation.sh"]
# Two rows without an option that only one of them has.
TINY = {
    "data.name": "digits",
    "data.train_split": "train[:64]",
    "data.eval_split": "test[:20]",
    "data.image_size": 8,
    "data.train_crop": "pad",
    "data.crop_padding": 1,
    "data.eval_resize": 0,
    "batch_size": 16,
    "duration": "10 steps",
    "model.stem": "small",
    "model.width": 8,
    "model.stage_sizes": [1, 1, 1, 1],
    "model.dtype": "float32",
    "schedule.learning_rate": 0.01,
    "eval.every": "10 steps",
    "checkpoint.every": "10 steps",
    "checkpoint.keep_best": 0,
    "log.every": "1 steps",
    "log.tensorboard": False,
}
CHANGES = [f"--config.{key}={value}" for key, value in TINY.items()]


def commands(*words, **environment):
    """Returns the commands that are printed instead of run."""
    done = subprocess.run(
        [*SCRIPT, *words],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [shlex.split(line.removeprefix("+ ")) for line in done.stdout.splitlines()]


def configuration(command):
    """Returns what a printed command trains."""
    words = command[command.index("--config") :]
    assert words[0] == "--config" and words[2] == "--workdir"
    return load_config(str(ROOT / words[1]), words[4:]), words[3]


def test_a_dry_run_prints_every_row_of_the_configurations():
    *rows, table = commands("--dry_run", "--depth", "34", "--data_dir", "/data")
    assert table == [".venv/bin/python", "-m", "vt_flax", "summarize", *table[4:]]
    assert table[4:] == ["--ablation", "runs/ablation"]
    text = (ROOT / "configs" / "ablations.py").read_text()
    names = re.findall(r'^    "(\w+)": \{', text, re.M)
    trained = []
    for row in rows:
        assert row[:4] == [".venv/bin/python", "-m", "vt_flax", "train"]
        config, workdir = configuration(row)
        trained.append(pathlib.Path(workdir).name.removesuffix("-34"))
        assert config.model.name.endswith("resnet34")
        assert config.data.data_dir == "/data"
        assert row[5] == f"configs/ablations.py:{trained[-1]},34"
    # recurrent is the same model as these.
    assert sorted(trained) == sorted(set(names) - {"transformer", "tokens16"})


def test_rows_folder_and_configuration_are_ones_own():
    words = ["--rows", "tokens16,resnet", "--workdir", "/w", "--config.seed=3"]
    one, two, table = commands("--dry-run", *words, VENV="/venv")
    assert table[0] == "/venv/bin/python" and table[-1] == "/w"
    for command, row in ((one, "tokens16"), (two, "resnet")):
        config, workdir = configuration(command)
        assert workdir == f"/w/{row}-18" and config.seed == 3


POD = {"POD_NAME": "vt", "POD_ZONE": "z1-a", "POD_TYPE": "v5litepod-16"}


def test_a_pod_gets_a_command_for_each_row(tmp_path):
    words = ["--pod", "--rows", "no_projector,static", "--data_dir", "gs://b/data"]
    for command, row in zip(
        commands(*words, **POD), ("no_projector", "static"), strict=True
    ):
        assert command[:2] == ["bash", "launch/tpu/resubmit.sh"]
        name = f"vt-{row.replace('_', '-')}-18"
        place = ["--name", name, "--zone", "z1-a", "--type", "v5litepod-16"]
        assert command[2:9] == [*place, "--"]
        config, workdir = configuration(command)
        assert workdir == f"../bucket/runs/ablation/{row}-18"
        assert config.data.data_dir == "gs://b/data"
    # The other script takes it as it is; a gcloud that did more than print would fail.
    (tmp_path / "gcloud").write_text("#!/bin/sh\nexit 97\n")
    (tmp_path / "gcloud").chmod(0o755)
    done = subprocess.run(
        [*command[:2], "--dry-run", *command[2:]],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "ablations.py:static" in done.stdout
    assert "attempt 2" not in done.stdout


def test_the_example_of_the_help_can_be_run():
    done = subprocess.run([*SCRIPT, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("usage: bash launch/ablation.sh")
    example = done.stdout[done.stdout.index("  bash launch/") :].partition("\n\n")[0]
    words = shlex.split(example.replace("\\\n", " "))
    *rows, _ = commands("--dry_run", *words[2:])
    assert len(rows) == 3
    for row in rows:
        assert configuration(row)[0].data.image_size == 32


@pytest.mark.parametrize(
    "words, message",
    [
        (["--rows", "static,statik"], "--rows statik: choose from resnet recurrent"),
        (["--depth", "50"], "--depth 50: write 18 or 34"),
        (["--rows"], "--rows needs a value"),
        (["static"], "unknown option static (see --help)"),
        (["--pod"], "--pod: $POD_NAME is not set (see --help)"),
        (["--config.seed"], "unknown option --config.seed (see --help)"),
    ],
)
def test_bad_options_are_one_line_and_status_2(words, message):
    done = subprocess.run(
        [*SCRIPT, *words],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def stamp():
    """Returns the content of the file that says that all is installed."""
    command = "cat setup.cfg pyproject.toml .ci/constraints.txt | cksum"
    sums = subprocess.check_output(command, shell=True, cwd=ROOT, text=True)
    return f" {platform.python_version()} {sums}"


@pytest.fixture
def starter(tmp_path):
    """What takes the part of the environment's Python."""
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / ".installed").write_text(stamp())
    return Starter(tmp_path / "venv")


@pytest.fixture
def environment(tmp_path, starter):
    del starter
    known = {"VENV": str(tmp_path / "venv"), "PYTHON": sys.executable}
    return os.environ | quick(1) | known | {"PYTHONPATH": str(ROOT)}


def started(environment, *words):
    return subprocess.Popen(
        [*SCRIPT, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_row_that_is_wrong_is_told_before_any_is_trained(environment, tmp_path):
    words = ["--workdir", str(tmp_path / "runs"), "--config.model.tokens=4"]
    with started(environment, "--rows", "static,resnet", *words) as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "== static" not in out
    assert errors.startswith("error: row resnet: config.model.tokens is no key")
    assert errors.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_rows_that_are_stopped_go_on_and_end_in_a_table(
    environment, starter, digits, tmp_path
):
    runs = tmp_path / "runs"
    words = ["--rows", "resnet,static", "--workdir", str(runs), "--data_dir", digits]
    words += CHANGES

    def evaluations(row):
        return [r for r in read_metrics(runs / row) if r["kind"] == "eval"]

    with started(environment, *words) as process:
        for line in process.stdout:
            if line == "== static, depth 18\n":
                break
        while len(starter.processes) < 2:
            time.sleep(0.02)
        starter.processes[1].wait_for("step 1/")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 4, errors
    assert errors.endswith("stopped at row static: run the same command to go on\n")
    first = evaluations("resnet-18")
    assert len(first) == 1 and not evaluations("static-18")

    with started(environment, *words) as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    told, rest = out.split("== static, depth 18\n")
    assert "nothing left to do" in told and "training steps" not in told
    assert re.search(r"resuming from step \d+ of 10", rest)
    assert evaluations("resnet-18") == first
    lines = rest.partition("== all rows\n")[2].splitlines()
    for row, paper in (("resnet", "69.9"), ("static", "71.4")):
        (line,) = [line for line in lines if f" {row}, 18 " in line]
        (record,) = evaluations(f"{row}-18")
        found = line.split()
        assert found[2:4] == [paper, str(round(record["raw_top1"], 2))]
        assert found[5] == "10"


def test_the_others_are_trained_when_one_fails(environment, tmp_path):
    """With a status of its own, of the first; and the table is of those that began."""
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" != -c ] || exec {sys.executable} "$@"\n'
        'echo "$*"\ncase "$*" in *train*:graph*) exit 3;; esac\n'
    )
    python.chmod(0o755)
    words = ["--rows", "graph,static", "--workdir", str(tmp_path)]
    outputs = []
    for more in ([], ["--keep_going"]):
        with started(environment, *words, *more) as process:
            out, errors = process.communicate(timeout=60)
        assert process.returncode == 3
        assert "row graph ended with status 3" in errors
        outputs.append(out)
    assert "ablations.py:static" not in outputs[0] and "--ablation" not in outputs[0]
    assert "ablations.py:static" in outputs[1] and "--ablation" in outputs[1]
