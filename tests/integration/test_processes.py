"""Several real processes: the same results, and what happens when one is gone."""

import shutil
import signal
import time

import numpy as np
import pytest
from pods import pod

from vt_flax.training.logging import read_metrics


def finish(folder, count, devices, changes=None, extra=()):
    """Trains to the end; returns what was measured, without clock and memory."""
    with pod(folder, [changes or {}] * count, devices=devices, extra=extra) as it:
        for process in it:
            assert process.end() == 0, process.out + process.err
        assert f"process 0 of {count} on" in it[0].out
    return read_metrics(folder / "run")


def losses(records):
    return np.asarray([r["loss"] for r in records if r["kind"] == "train"])


def counts(records):
    (found,) = [r for r in records if r["kind"] == "eval"]
    return {k: v for k, v in found.items() if not k.endswith("loss")}


@pytest.fixture(scope="module")
def data(digits):
    return {"data.data_dir": digits}


# Sums in another order differ in the last bit, which training multiplies: tenfold in
# three steps at a rate of 0.01, hardly at this one.
CALM = {"schedule.rate": 0.001, "batch_size": 64}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data):
    """One process with four devices."""
    return finish(tmp_path_factory.mktemp("alone"), 1, 4, data | CALM)


@pytest.mark.parametrize(
    "count, devices, fsdp", [(2, 2, 1), (4, 1, 1), (1, 4, 2), (2, 2, 4)]
)
def test_any_number_of_processes_trains_alike(
    count, devices, fsdp, alone, data, tmp_path
):
    changes = {**data, **CALM, "parallel.fsdp": fsdp}
    found = finish(tmp_path, count, devices, changes)
    assert losses(found).shape == (20,)
    np.testing.assert_allclose(losses(found), losses(alone), rtol=1e-5)
    assert counts(found) == counts(alone)


def ends(processes, status, lines, seconds=60):
    """Checks that processes end with one line each, and returns after how long."""
    begin = time.monotonic()
    for process in processes:
        assert process.end(seconds) == status, process.out + process.err
        (line,) = process.err.splitlines()
        assert lines in line, line
    return time.monotonic() - begin


def same_results(folder, expected):
    """Compares what was measured at each step, to the bit."""
    found = read_metrics(folder)
    keys = ("loss", "top1", "rate", "grad_norm", "skipped")
    assert [(r["kind"], r["step"]) for r in found if r["kind"] != "checkpoint"] == [
        (r["kind"], r["step"]) for r in expected if r["kind"] != "checkpoint"
    ]
    for a, b in zip(
        (r for r in found if r["kind"] != "checkpoint"),
        (r for r in expected if r["kind"] != "checkpoint"),
        strict=True,
    ):
        if a["kind"] == "train":
            assert [a[k] for k in keys] == [b[k] for k in keys]
        else:
            assert a == b


@pytest.fixture(scope="module")
def together(tmp_path_factory, data):
    """Two processes, undisturbed."""
    folder = tmp_path_factory.mktemp("together")
    return folder, finish(folder, 2, 1, data)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_peer_that_is_killed_is_named_and_a_restart_goes_on(
    victim, together, data, tmp_path
):
    _, expected = together
    with pod(tmp_path, [data] * 2) as it:
        it[0].wait_for("step 8/")
        it[victim].popen.send_signal(signal.SIGKILL)
        name = "process 1" if victim else "process 0"
        seconds = ends([it[1 - victim]], 5, f"error: {name} (")
        assert seconds < 15
        assert "is gone" in it[1 - victim].err
    assert finish(tmp_path, 2, 1, data)
    same_results(tmp_path / "run", expected)


def test_a_sigterm_to_one_of_two_stops_both_after_the_same_step(
    together, data, tmp_path
):
    _, expected = together
    with pod(tmp_path, [data] * 2) as it:
        it[0].wait_for("step 7/")
        it[1].popen.send_signal(signal.SIGTERM)
        ends(it, 4, "stopped by SIGTERM after step")
        assert it[0].err == it[1].err
        step = int(it[0].err.split("step ")[1].split(" ")[0])
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    finish(tmp_path, 2, 1, data)
    same_results(tmp_path / "run", expected)


def test_a_peer_that_is_frozen_is_named(data, tmp_path):
    with pod(tmp_path, [{**data, "parallel.silence_seconds": 6.0}] * 2) as it:
        it[0].wait_for("step 3/")
        it[1].popen.send_signal(signal.SIGSTOP)
        assert ends([it[0]], 5, "process 1 (") < 30
        assert "is not heard of for" in it[0].err


def test_a_peer_that_never_starts_is_named(data, tmp_path):
    with pod(tmp_path, [data], count=2, extra=["--start_seconds", "3"]) as it:
        ends(it, 5, "error: process 1 of 2 did not come to 'start' within 3 s")
    assert not (tmp_path / "run").exists()


def test_configurations_that_differ(data, tmp_path):
    with pod(tmp_path, [data, {**data, "schedule.rate": 0.02}]) as it:
        ends(it, 2, "has another configuration than process 0 (")
        assert "schedule.rate: 0.01 -> 0.02" in it[0].err
    assert not (tmp_path / "run").exists()


def test_workdirs_that_differ(data, tmp_path):
    workdirs = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    with pod(tmp_path, [data] * 2, workdirs=workdirs) as it:
        ends(it, 2, "name a folder that all machines share")
        assert f"does not see the --workdir {workdirs[0]} of process 0" in it[0].err
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_dataset_that_disappears_for_one(digits, data, tmp_path):
    """The one that fails says why, the others that it does."""
    own = tmp_path / "copy"
    shutil.copytree(digits, own)
    changes = {**data, "duration": "100000 steps", "data.data_dir": str(own)}
    with pod(tmp_path, [changes] * 2) as it:
        it[0].wait_for("step 3/")
        for file in own.rglob("*train*"):
            file.write_bytes(b"")
        assert {p.end() for p in it} == {2}
        for process in it:
            assert process.err.count("\n") == 1, process.err
            assert "cannot be read" in process.err
