"""The launch scripts: help, and a clear refusal where there is no Python."""

import configparser
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = [
    *("launch/quickstart.sh", "launch/test.sh", "launch/local_pod.sh"),
    *("launch/ablation.sh", "launch/oldest.sh", "launch/notebooks.sh"),
]


def run(*arguments, **environment):
    return subprocess.run(
        ["bash", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    done = run(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: bash {script}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_python_is_one_line_and_status_2(script, tmp_path):
    venv = str(tmp_path / "venv")
    arguments = ["2"] if script == "launch/local_pod.sh" else []
    done = run(script, *arguments, PYTHON="no-such-python", VENV=venv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no-such-python is missing or older")
    assert not pathlib.Path(venv).exists()


def test_the_quickstart_installs_the_extra_that_is_named(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "python $*"\n')
    python.chmod(0o755)
    environment = {"PYTHON": sys.executable, "VENV": str(tmp_path / "venv")}

    def commands(*arguments):
        (tmp_path / "venv" / ".installed").unlink(missing_ok=True)
        done = run("launch/quickstart.sh", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        lines = [x for x in done.stdout.splitlines() if x.startswith("python ")]
        install, train, _ = lines
        return install.split()[-1], train.partition("--workdir ")[2]

    override = "--config.duration=3 epochs"
    plain = ".", "runs/quickstart"
    assert commands() == plain
    for words in (["--extra", "cuda"], ["--extra=cuda"]):
        assert commands(*words) == (".[cuda]", "runs/quickstart")
        assert commands(*words, "w", override) == (".[cuda]", f"w {override}")
        assert commands("w", override, *words) == (".[cuda]", f"w {override}")
    assert commands(override) == (".", f"runs/quickstart {override}")


@pytest.mark.parametrize("words", [["--extra", "cude"], ["--extra=gpu"], ["--extra"]])
def test_an_extra_that_is_not_there_is_one_line_and_status_2(words):
    done = run("launch/quickstart.sh", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --extra") and "cuda or tpu" in done.stderr
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert {"cuda", "tpu"} <= {*setup["options.extras_require"]}


def test_a_local_pod_is_told_what_a_pod_is_told():
    done = run(
        "launch/local_pod.sh", "2", "--devices", "3", "--port", "99", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for i, line in enumerate(lines):
        assert "XLA_FLAGS=--xla_force_host_platform_device_count=3" in line
        assert "--config configs/quickstart.py --workdir runs/local_pod" in line
        assert line.endswith(f"--coordinator 127.0.0.1:99 --processes 2 --process {i}")


@pytest.mark.parametrize(
    "arguments", [[], ["x"], ["2", "--devices", "0"], ["2", "--port"]]
)
def test_a_local_pod_of_no_number_is_one_line_and_status_2(arguments):
    done = run("launch/local_pod.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_the_tests_of_the_oldest_libraries_are_there():
    text = (ROOT / "launch/oldest.sh").read_text()
    words = text.partition("set -- ")[2].partition("\nfi\n")[0]
    done = run("-c", f"printf '%s\\n' {words}")
    named = [word.partition("::") for word in done.stdout.split()]
    assert len(named) > 15
    assert [path for path, _, _ in named if not (ROOT / path).exists()] == []
    single = [(ROOT / path, f"def {test}(") for path, _, test in named if test]
    assert [head for path, head in single if head not in path.read_text()] == []
