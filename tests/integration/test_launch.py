"""The launch scripts: help, and a clear refusal where there is no Python."""

import pathlib
import re
import subprocess

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


STUBS = {
    "launch/common.sh": 'find_python() { [[ $THERE == *"$1"* ]] && echo "py$1"; }',
    "launch/test.sh": 'echo "ran $PYTHON $VENV $EXTRAS:" "$@"; [ "$PYTHON" != "$BAD" ]',
}
WHOLE = "ran py3.13 .cache/venv-3.13 test,tpu: -rs"
SHORT = "ran py3.11 .cache/venv-3.11 test,torch: -rs -m torch or not slow"


@pytest.mark.parametrize(
    "there, failing, legs, statuses",
    [
        ("3.11 3.12 3.13", "", [WHOLE, SHORT], [0, 0]),
        ("3.11 3.13", "py3.13", [WHOLE, SHORT], [1, 0]),
        ("3.11 3.13", "py3.11", [WHOLE, SHORT], [0, 1]),
        ("3.12 3.11", "", [WHOLE.replace("3.13", "3.12"), SHORT], [0, 0]),
        ("3.13", "", [WHOLE], [0]),
        ("3.11", "", ["ran py3.11 .cache/venv-3.11 test,torch,tpu: -rs"], [0]),
        ("3.10", "", [], []),
    ],
)
def test_ci_runs_both_legs_and_fails_if_one_does(
    there, failing, legs, statuses, tmp_path
):
    for name, text in STUBS.items() | {(".ci/run", (ROOT / ".ci/run").read_text())}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = run(str(tmp_path / ".ci/run"), THERE=there, BAD=failing)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("ran ")] == legs
    ends = [line for line in lines if "exit status" in line]
    found = [int(re.search(r"exit status (\d+) after", line)[1]) for line in ends]
    assert found == statuses
    assert done.returncode == (max(statuses) if statuses else 2)
    assert ("PyTorch's tests were left out" in done.stdout) == (there == "3.13")
