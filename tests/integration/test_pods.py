"""Several real processes: the same results, and named faults."""

import contextlib
import json
import os
import pathlib
import re
import signal
import time
import types

import jax
import numpy as np
import pytest
from kills import LONG
from pods import assert_same_run, make_images, measured, pod

from vt_flax.cli import evaluate
from vt_flax.fused.selection import Trial
from vt_flax.training import formulation, loop

pytestmark = pytest.mark.slow

# Sums in another order differ in the last bit, which training amplifies: tenfold in
# three steps at a learning rate of 0.01, hardly at this one.
CALM = {"schedule.learning_rate": 0.001, "batch_size": 16, "eval.batch_size": 32}
# A network that compiles faster, where it matters only who computes.
PLAIN = {
    **LONG,
    **CALM,
    "model.width": 16,
    "duration": "20 steps",
    "log.every": "1 steps",
}


@pytest.fixture(scope="module")
def data(digits):
    return {"data.data_dir": digits, **CALM}


@pytest.fixture(scope="module")
def plain(digits):
    return {"data.data_dir": digits, **PLAIN}


def finish(folder: pathlib.Path, count: int, devices: int, changes: dict):
    """Trains to the end; returns the metrics, without clock and memory."""
    with pod(folder, [changes] * count, devices=devices) as it:
        for process in it:
            assert process.end(240) == 0, process.out + process.err
        for i, process in enumerate(it):
            fsdp = changes.get("parallel.fsdp", 1)
            mesh = f"mesh data {count * devices // fsdp} x fsdp {fsdp}"
            assert re.search(f"process {i} of {count} on .*, {mesh}\n", process.out)
    return measured(folder)


@pytest.fixture(scope="module")
def together(tmp_path_factory, data):
    """Two processes with two devices each, which share every large array."""
    folder = tmp_path_factory.mktemp("together")
    finish(folder, 2, 2, {**data, "parallel.fsdp": 4})
    return folder


def printed(process):
    """Returns what a process printed, without gloo's lines on connections of CPUs."""
    lines = process.out.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("[Gloo]"))


def losses(records):
    return np.asarray([r["loss"] for r in records if r["kind"] == "train"])


def evaluation(records):
    (record,) = [r for r in records if r["kind"] == "eval"]
    return {k: v for k, v in record.items() if not k.endswith("loss")}


def test_two_processes_train_as_one(data, together, tmp_path):
    """In float32, whose sums depend on their order, over all steps."""
    found, expected = measured(together), finish(tmp_path, 1, 4, data)
    assert losses(found).shape == losses(expected).shape == (20,)
    np.testing.assert_allclose(losses(found), losses(expected), rtol=1e-5)
    assert evaluation(found) == evaluation(expected)


def test_two_processes_evaluate_as_training_did(together, tmp_path):
    words = ["--format", "json", "--workdir", str(together / "run")]
    with pod(tmp_path, [{}] * 2, devices=2, command="evaluate", extra=words) as it:
        for process in it:
            assert process.end() == 0, process.err
        found = {row["weights"]: row for row in json.loads(printed(it[0]))}
        assert printed(it[1]) == ""
    expected = evaluation(measured(together))
    for weights in ("raw", "ema"):
        assert found[weights]["examples"] == 45
        for metric in ("top1", "top5"):
            assert found[weights][metric] == round(expected[f"{weights}_{metric}"], 3)


def test_two_processes_report_on_tokens_as_one(together, tmp_path):
    """Of 45 examples: batches of 32, the second filled up, shared by two."""
    workdir = str(together / "run")
    words = ["--format", "json", "--workdir", workdir, "--tokens", str(tmp_path / "2")]
    with pod(tmp_path, [{}] * 2, devices=2, command="evaluate", extra=words) as it:
        for process in it:
            assert process.end() == 0, process.err
        found = json.loads(printed(it[0]))
        assert printed(it[1]) == "" and "wrote" not in it[1].err
    assert json.loads((tmp_path / "2" / "tokens.json").read_text()) == found
    evaluate.main(["--workdir", workdir, "--tokens", str(tmp_path / "1")])
    expected = json.loads((tmp_path / "1" / "tokens.json").read_text())
    assert expected["examples"] == 45
    pairs = zip(*map(jax.tree.leaves_with_path, (found, expected)), strict=True)
    for (path, a), (other, b) in pairs:
        assert path == other
        same = pytest.approx(b, rel=1e-3, abs=1e-5) if isinstance(b, float) else b
        assert a == same, jax.tree_util.keystr(path)


def ends(processes, status, text, seconds=60):
    """Checks that processes end with one line each, and returns after how long.

    JAX may have printed why it would have aborted.
    """
    begin = time.monotonic()
    for process in processes:
        assert process.end(seconds) == status, process.out + process.err
        lines = process.err.splitlines()
        (line,) = [x for x in lines if x.startswith(("error: ", "stopped "))]
        assert text in line, line
    return time.monotonic() - begin


def test_a_disturbed_run_has_the_undisturbed_result(plain, tmp_path):
    """Stopped and killed, with restarts: the others name the reason, and only time is
    lost."""
    changes = {**plain, "checkpoint.every": "4 steps"}
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    finish(whole, 2, 2, changes)

    def start_until(step):
        it = stack.enter_context(pod(disturbed, [changes] * 2, devices=2))
        it[0].wait_for(f"step {step}/")
        return it

    with contextlib.ExitStack() as stack:
        it = start_until(4)
        it[1].send(signal.SIGTERM)
        ends(it, 4, "stopped by SIGTERM after step")
        assert it[0].err == it[1].err
        step = int(it[0].err.split("step ")[1].split(" ")[0])
        assert (disturbed / "run" / "checkpoints" / str(step)).is_dir()

        it = start_until(step + 3)
        assert f"resuming from step {step} of 20" in it[0].out
        assert "(auto on cpu: kept from formulation.json)" in it[0].out
        it[1].send(signal.SIGKILL)
        assert ends(it[:1], 5, "error: process 1 (") < 30
        assert "is gone: no heartbeat for 10 s (last at: step " in it[0].err

        it = start_until(14)
        it[0].send(signal.SIGKILL)
        assert ends(it[1:], 5, "error: process 0 (") < 15
        assert "is gone" in it[1].err
    finish(disturbed, 2, 2, changes)
    assert_same_run(disturbed, whole)


def test_configurations_that_differ(data, tmp_path):
    with pod(tmp_path, [data, {**data, "schedule.learning_rate": 0.02}]) as it:
        ends(it, 2, " differs from process 0 (")
        assert "schedule.learning_rate: 0.001 -> 0.02" in it[0].err
    assert not (tmp_path / "run").exists()


def test_workdirs_that_differ(data, tmp_path):
    workdirs = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    with pod(tmp_path, [data] * 2, workdirs=workdirs) as it:
        ends(it, 2, "name a folder that all machines share")
        assert f"does not see the --workdir {workdirs[0]} of process 0" in it[0].err
    assert not any(workdirs[0].iterdir()) and not workdirs[1].exists()


def test_copies_of_the_data_that_differ(data, tmp_path):
    """Machines with a copy each, of which one has an image less."""
    homes = [tmp_path / "one", tmp_path / "other"]
    for home in homes:
        changes, file = make_images(home / "images")
    changes = data | changes | {"data.name": "folder:~/images"}
    file.unlink()
    with pod(tmp_path, [changes] * 2, homes=homes) as it:
        ends(it, 2, " has other data than process 0 (")
        assert "eval.examples: 40 -> 39" in it[0].err
    assert not (tmp_path / "run").exists()


def pose_as_tpus():
    """Makes the CPUs look like TPUs, on which each process measures other times."""
    choose = formulation.choose_formulation
    tpu = types.SimpleNamespace(id=0, platform="tpu", device_kind="TPU v5")

    def try_formulations(*_):
        times = [3.0, 1.0, 2.0] if jax.process_index() == 0 else [1.0, 2.0, 3.0]
        return map(Trial, times)

    def choose_formulation(model, size, mesh, *others):
        mesh = types.SimpleNamespace(local_devices=[tpu])
        choice = choose(model, size, mesh, *others)
        print("trains", choice.model.formulation)
        return choice

    formulation.try_formulations = try_formulations
    loop.choose_formulation = choose_formulation


def test_an_unreadable_example_ends_all_processes(plain, tmp_path):
    """A file that disappears during a run; either process may read it.

    Both train the formulation that process 0 has chosen.
    """
    own, file = make_images(tmp_path / "images")
    changes = plain | own | {"checkpoint.every": "2 steps"}
    with pod(tmp_path, [changes] * 2, devices=4, setup=pose_as_tpus) as it:
        it[0].wait_for("step 3/")
        assert (
            "formulation: folded (auto on TPU v5; printed 3.0 ms, folded 1.0 ms, fused "
            "2.0 ms)\n"
        ) in it[0].out
        assert all("trains folded\n" in process.out for process in it)
        record = json.loads((tmp_path / "run" / formulation.FILE).read_text())
        assert record["formulation"] == "folded"
        file.unlink()
        ends(it, 2, f"{file}: No such file or directory")
    assert any((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_a_process_that_hangs_is_named(plain, tmp_path):
    """It reads a pipe that never ends, while its heartbeats go on."""
    own, file = make_images(tmp_path / "images")
    # Training or evaluation reads the file first.
    changes = plain | own | {"parallel.progress_timeout": 25.0}
    with pod(tmp_path, [changes] * 2, devices=2) as it:
        it[0].wait_for("step 3/")
        file.unlink()
        os.mkfifo(file)
        ends(it, 5, " got no further for 25 s, at: ")
        place = "(step [0-9]+|evaluating(, batch [0-9]+)?): waiting for its examples: "
        assert re.search(f"at: {place}", it[0].err), it[0].err
