"""Disks that are full or read-only, and data that goes away, in one process."""

import os
import shlex
import subprocess
import sys

import pytest
from kills import LONG
from pods import ROOT, arguments, assert_same_run, make_images, pod, quick

pytestmark = pytest.mark.slow


def mounted(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a script of the shell that may mount; nobody else sees what it mounts."""
    unshare = ["unshare", "--map-root-user", "--mount"]
    probe = [*unshare, "sh", "-c", "mount -t tmpfs none /mnt"]
    try:
        subprocess.run(probe, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here (unshare --mount)")
    return subprocess.run(
        [*unshare, "sh", "-c", script, "sh", *arguments],
        cwd=ROOT,
        env=os.environ | quick(1),
        capture_output=True,
        text=True,
    )


def train(workdir: str, changes: dict) -> list[str]:
    return [sys.executable, "-m", "vt_flax", "train", *arguments(workdir, changes)]


def error_line(done: subprocess.CompletedProcess) -> str:
    """Returns our line of an error; Orbax may print tracebacks of its own beside it."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def changes(digits):
    return LONG | {
        "data.data_dir": digits,
        "duration": "60 steps",
        "eval.every": "60 steps",
    }


def test_a_full_disk_is_named_and_keeps_what_was_saved(changes, tmp_path):
    """Room for some checkpoints; then the run goes on elsewhere as if nothing was."""
    full = shlex.join(train("/mnt/run", {**changes, "checkpoint.keep": 100}))
    done = mounted(
        f"mount -t tmpfs -o size=6m none /mnt; {full}; status=$?; "
        'cp -a /mnt/run "$1"; exit $status',
        str(tmp_path / "run"),
    )
    line = error_line(done)
    assert "a checkpoint could not be written (No space left on device)" in line
    assert "is kept" in line
    saved = (tmp_path / "run" / "checkpoints").iterdir()
    steps = [int(p.name) for p in saved if p.name.isdigit()]
    assert steps and max(steps) < 60
    whole = tmp_path / "whole"
    for folder in (tmp_path, whole):
        with pod(folder, [changes]) as (process,):
            assert process.end() == 0, process.err
    assert_same_run(tmp_path, whole)


def test_a_workdir_that_cannot_be_written_to(changes, tmp_path):
    script = 'mount -t tmpfs none /mnt; mkdir /mnt/run; mount -o remount,ro /mnt; "$@"'
    for workdir in ("/mnt/run", "/mnt/run/new"):
        line = error_line(mounted(script, *train(workdir, changes)))
        assert f"{workdir}: Read-only file system" in line


def test_data_that_goes_away_is_named(changes, tmp_path):
    own, file = make_images(tmp_path / "images")
    with pod(tmp_path, [changes | own]) as (process,):
        process.wait_for("step 14/")
        file.unlink()
        assert process.end() == 2
        (line,) = process.err.splitlines()
    assert line.startswith("error: ")
    assert f"{file}: No such file or directory" in line
    assert [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
