"""Disks that are full or read-only."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from kills import LONG
from pods import ROOT, arguments, pod, quick

pytestmark = pytest.mark.slow


def mounted(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a shell script that may mount; its mounts are private to it."""
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
    """Returns the command's error; Orbax's threads print tracebacks around it."""
    assert done.returncode == 2, done.stdout + done.stderr
    errors = re.findall("error: ((?:--workdir )?/mnt/.*)", done.stderr)
    assert len(errors) == 1, done.stderr
    return errors[0]


@pytest.fixture(scope="module")
def changes(digits):
    return LONG | {
        "data.data_dir": digits,
        "duration": "60 steps",
        "eval.every": "60 steps",
    }


def test_a_full_disk_is_named_and_keeps_what_was_saved(changes, tmp_path):
    """Room for some checkpoints, from the newest of which the run goes on elsewhere."""
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
    with pod(tmp_path, [changes]) as (process,):
        assert process.end() == 0, process.err
        assert f"resuming from step {max(steps)} of 60" in process.out


def test_a_workdir_that_cannot_be_written_to(changes):
    script = 'mount -t tmpfs none /mnt; mount -o remount,ro /mnt; "$@"'
    line = error_line(mounted(script, *train("/mnt/run", changes)))
    assert "/mnt/run: Read-only file system" in line
