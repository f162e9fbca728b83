"""The launch scripts: help, and a clear refusal where there is no Python."""

import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = ["launch/quickstart.sh", "launch/test.sh"]


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
    done = run(script, PYTHON="no-such-python", VENV=venv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no-such-python is missing or older")
    assert not pathlib.Path(venv).exists()


@pytest.mark.parametrize("script", [*SCRIPTS, "launch/common.sh", ".ci/run"])
def test_the_shell_can_read_it(script):
    assert run("-n", script).returncode == 0
