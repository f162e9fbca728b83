"""launch/ablation.sh: the commands that it prints, and runs with a stub of Python."""

import os
import pathlib
import platform
import re
import shlex
import signal
import subprocess
import sys

import pytest

from vt_flax.training.config import load_config

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ["bash", "launch/ablation.sh"]
POD = {"POD_NAME": "vt", "POD_ZONE": "z1-a", "POD_TYPE": "v5litepod-16"}


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
    """Returns the configuration and the workdir of a printed command."""
    words = command[command.index("--config") :]
    assert words[0] == "--config" and words[2] == "--workdir"
    return load_config(str(ROOT / words[1]), words[4:]), words[3]


def test_a_dry_run_prints_every_row_of_the_configurations():
    *rows, table = commands("--dry_run", "--depth", "34", "--data_dir", "/data")
    assert table[1:] == ["-m", "vt_flax", "summarize", "--ablation", "runs/ablation"]
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


def test_a_pod_gets_a_command_for_each_row():
    words = ["--pod", "--rows", "no_projector,static", "--config.seed=3"]
    one, two = commands(*words, **POD)
    assert one[:2] == ["bash", "launch/tpu/resubmit.sh"]
    place = ["--name", "vt-no-projector-18", "--zone", "z1-a", "--type", "v5litepod-16"]
    assert one[2:9] == [*place, "--"]
    config, workdir = configuration(two)
    assert workdir == "../bucket/runs/ablation/static-18"
    assert config.seed == 3 and config.data.data_dir == ""


def test_the_example_of_the_help_can_be_run():
    done = subprocess.run([*SCRIPT, "--help"], cwd=ROOT, capture_output=True, text=True)
    example = done.stdout[done.stdout.index("  bash launch/") :].partition("\n\n")[0]
    words = shlex.split(example.replace("\\\n", " "))
    *rows, _ = commands("--dry_run", *words[2:])
    assert [configuration(row)[0].data.image_size for row in rows] == [32] * 3


@pytest.mark.parametrize(
    "words, message",
    [
        (["--rows", "static,statik"], "--rows statik: choose from resnet recurrent"),
        (["--rows"], "--rows needs a value"),
        (["static"], "unknown option static (see --help)"),
        (["--pod"], "--pod: $POD_NAME is not set (see --help)"),
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


# Stands for the environment's Python. The row `static` runs until a SIGTERM, and ends
# as `train` does; a second one finds the row saved. The row `graph` diverges. Rows are
# checked beforehand if $CHECK is set: that takes seconds.
PYTHON = f"""#!/bin/bash
case "$1 $2" in -c*load_config*) [ -n "$CHECK" ] || exit 0 ;; esac
[ "$1" != -c ] || exec {sys.executable} "$@"
case "$*" in
  *train*:graph*) exit 3 ;;
  *train*:static*)
    [ ! -e "$SAVED" ] || exit 0
    trap 'touch "$SAVED"; exit 4' TERM
    echo "training $*"
    while true; do sleep 0.05; done
    ;;
esac
echo "$*"
"""


@pytest.fixture
def start(tmp_path):
    """Returns a function that starts the script with the stub."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    # All is installed already.
    command = "cat setup.cfg pyproject.toml .ci/constraints.txt | cksum"
    sums = subprocess.check_output(command, shell=True, cwd=ROOT, text=True)
    stamp = tmp_path / "venv" / ".installed"
    stamp.write_text(f"train {platform.python_version()} {sums}")
    paths = {"VENV": str(tmp_path / "venv"), "SAVED": str(tmp_path / "saved")}
    environment = os.environ | paths | {"PYTHONPATH": str(ROOT)}
    environment["PYTHON"] = sys.executable

    def start(rows, *words, check=""):
        return subprocess.Popen(
            [*SCRIPT, "--rows", rows, "--workdir", str(tmp_path / "runs"), *words],
            cwd=ROOT,
            env=environment | {"CHECK": check},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.slow
def test_a_wrong_row_is_found_before_any_is_trained(start):
    wrong = "--config.model.tokens=4"
    with start("static,resnet", wrong, check="yes") as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "== static" not in out
    assert errors.startswith("error: row resnet: config.model.tokens is no key")
    assert errors.count("\n") == 1


def test_rows_that_are_stopped_resume_and_end_in_a_table(start):
    with start("resnet,static") as process:
        for line in process.stdout:
            if line.startswith("training "):
                break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 4
    assert errors == "error: stopped at row static: run the same command to resume\n"
    with start("resnet,static") as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out.index("== resnet") < out.index("== static") < out.index("== all rows")
    assert "summarize --ablation" in out.splitlines()[-1]


def test_a_row_that_fails_ends_it_with_its_status(start):
    with start("graph,resnet") as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 3 and "== resnet" not in out
    assert errors == "error: row graph ended with status 3\n"
