"""Training, resuming and evaluating a tiny network, from end to end."""

import json
import os
import shutil
import signal
import types

import jax
import numpy as np
import pytest
from kills import LONG
from ml_collections import ConfigDict
from pods import measured, pod
from run_states import assert_same, changed, cut_off, last_state, leaves

from vt_flax.cli import evaluate
from vt_flax.data import augment
from vt_flax.data.batches import eval_batches
from vt_flax.errors import UserError
from vt_flax.training import loop
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.progress import Diverged
from vt_flax.training.requests import Stopped
from vt_flax.training.run import prepare
from vt_flax.training.state import weights_of
from vt_flax.training.workdir import RunRecord, check_resumable, read_metrics

pytestmark = pytest.mark.usefixtures("shared_steps")


VT_RESNET = {
    "name": "vt_resnet18",
    "stem": "small",
    "stage_sizes": [1, 1, 1, 1],
    "project_last": True,
    "width": 8,
    "token_channels": 32,
    "heads": 4,
    "group_channels": 16,
    "dropout": 0.1,
    "survival_probability": 0.9,
}
RESNET = {"name": "resnet18", "stem": "small", "stage_sizes": [1] * 4, "width": 4}


def tiny(digits: str, model=VT_RESNET, **changes) -> ConfigDict:
    """Returns a configuration of eight steps on a few digits."""
    config = resolve(
        ConfigDict(
            {
                "batch_size": 32,
                "duration": "8 steps",
                "model": dict(model),
                "data": {
                    "data_dir": digits,
                    "image_size": 16,
                    "train_split": "train[:100]",
                    "eval_split": "test[:45]",
                },
                "schedule": {"learning_rate": 0.01, "warmup": "2 steps"},
                "eval": {"every": "4 steps"},
                "checkpoint": {"every": "3 steps", "keep": 5},
                "log": {"every": "2 steps", "tensorboard": False},
            }
        )
    )
    return changed(config, changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A finished run: its configured parts, workdir and results."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run = prepare(tiny(digits, **{"profile.start": 4, "profile.steps": 2}))
    return run, workdir, loop.train(run, workdir)


def saved(workdir) -> list[int]:
    return Checkpoints(workdir, read_only=True).steps()


def test_a_run_learns_and_records_what_it_measures(trained):
    run, workdir, results = trained
    records = read_metrics(workdir)
    train = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in train] == [2, 4, 6, 8]
    assert train[-1]["loss"] < train[0]["loss"]
    assert train[-1]["epoch"] == pytest.approx(8 * 32 / 100)
    evaluations = [r for r in records if r["kind"] == "eval"]
    assert [r["step"] for r in evaluations] == [4, 8]
    assert evaluations[-1]["raw_top1"] == results["raw"]["top1"]
    # Every evaluated state is saved too.
    assert saved(workdir) == [3, 4, 6, 8]
    (trace,) = (workdir / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    content = json.loads((workdir / "config.json").read_text())
    assert content["config"] == run.config.to_dict()


@pytest.mark.slow
def test_evaluation_equals_a_recount_image_by_image(trained):
    run, workdir, results = trained
    weights = weights_of(last_state(run, workdir))
    (batch,) = eval_batches(run.eval_source, run.config.data, batch=45)
    images = augment.normalize(batch["image"], run.config.data)
    for name, (params, stats) in weights.items():
        variables = jax.device_get({"params": params, "batch_stats": stats})
        logits = np.asarray(run.model.apply(variables, images), np.float64)
        order = np.argsort(-logits, axis=-1, kind="stable")
        top1 = sum(order[i, 0] == batch["label"][i] for i in range(45))
        top5 = sum(batch["label"][i] in order[i, :5] for i in range(45))
        shifted = logits - logits.max(-1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        loss = -logs[np.arange(45), batch["label"]].mean()
        assert results[name]["examples"] == 45
        assert results[name]["top1"] == pytest.approx(100 * top1 / 45)
        assert results[name]["top5"] == pytest.approx(100 * top5 / 45)
        assert results[name]["loss"] == pytest.approx(loss, rel=1e-4)
    # The EMA is of parameters and of batch statistics.
    for raw, ema in zip(weights["raw"], weights["ema"], strict=True):
        pairs = zip(jax.tree.leaves(raw), jax.tree.leaves(ema), strict=True)
        assert any(np.abs(a - b).max() > 1e-6 for a, b in pairs)


def test_a_resumed_run_equals_an_uninterrupted_one(
    trained, digits, tmp_path, monkeypatch, capsys
):
    """Whatever precision the calling program has enabled."""
    run, workdir, results = trained
    with cut_off(monkeypatch, 3):
        loop.train(prepare(tiny(digits)), tmp_path / "run")
    assert saved(tmp_path / "run") == [3]
    with jax.enable_x64(True):
        assert loop.train(prepare(tiny(digits)), tmp_path / "run") == results
    assert_same(last_state(run, workdir), last_state(run, tmp_path / "run"))
    # The metrics of steps 3 and 4 too, of which each process computed one.
    assert measured(tmp_path) == measured(workdir.parent)
    assert loop.train(prepare(tiny(digits)), tmp_path / "run") == results
    assert "nothing left to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    trained, digits, tmp_path, capsys
):
    run, workdir, results = trained
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    for file in (again / "checkpoints" / "8" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert loop.train(prepare(tiny(digits)), again) == results
    out = capsys.readouterr().out
    assert "warning: checkpoint 8" in out and "resuming from step 6 of 8" in out
    assert (again / "damaged" / "8").is_dir()
    assert_same(last_state(run, workdir), last_state(run, again))


@pytest.mark.slow
def test_an_interrupted_evaluation_is_repeated(trained, digits, tmp_path, monkeypatch):
    run, workdir, results = trained

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.train(prepare(tiny(digits)), tmp_path)
    monkeypatch.undo()
    assert saved(tmp_path) == [3, 4]
    assert loop.train(prepare(tiny(digits)), tmp_path) == results
    done = [r["step"] for r in read_metrics(tmp_path) if r["kind"] == "eval"]
    assert done == [4, 8]
    assert_same(last_state(run, workdir), last_state(run, tmp_path))


@pytest.mark.slow
def test_a_sigterm_loses_no_step(trained, digits, tmp_path, monkeypatch):
    """A real signal, between checkpoints; the result is the same to the bit.

    The run stops after the step that follows the one which carries the request.
    """
    run, workdir, results = trained
    batches = loop.device_batches

    def signaled(run, source, first):
        for i, batch in enumerate(batches(run, source, first), first):
            if i == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(loop, "device_batches", signaled)
    with pytest.raises(Stopped, match="after step 6 of 8, which is saved"):
        loop.train(prepare(tiny(digits)), tmp_path / "run")
    assert saved(tmp_path / "run")[-1] == 6
    monkeypatch.setattr(loop, "device_batches", batches)
    assert loop.train(prepare(tiny(digits)), tmp_path / "run") == results
    assert_same(last_state(run, workdir), last_state(run, tmp_path / "run"))


@pytest.mark.slow
def test_the_command_exits_with_status_4_after_a_sigterm(digits, tmp_path, monkeypatch):
    """And ignores JAX_ENABLE_X64, under which a step would not be traced."""
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    changes = LONG | {"data.data_dir": digits, "duration": "1000 steps"}
    changes |= {"parallel.cpu_devices": 2, "log.every": "1 steps"}
    with pod(tmp_path, [changes]) as (process,):
        process.wait_for("step 3/")
        process.send(signal.SIGTERM)
        assert process.end() == 4, process.err
        errors = process.err
    assert "mesh data 2 x fsdp 1" in process.out.splitlines()[0]
    assert errors.startswith("stopped by SIGTERM after step ")
    assert errors.count("\n") == 1 and "run the same command to go on" in errors
    step = int(errors.split("step ")[1].split(" ")[0])
    assert saved(tmp_path / "run")[-1] == step >= 3


@pytest.mark.slow
def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(digits, tmp_path):
    changes = {
        "schedule.name": "step",
        "schedule.warmup": "0 steps",
        # The fifth update, at a learning rate of 1e30, ruins the sixth step's loss.
        "schedule.boundaries": ["4 steps"],
        "schedule.decay_factor": 1e32,
    }
    run = prepare(tiny(digits, RESNET, **changes))
    with pytest.raises(Diverged, match=r"step 6 .*checkpoint of step 4 is kept"):
        loop.train(run, tmp_path)
    assert saved(tmp_path) == [3, 4]
    for path, value in leaves(last_state(run, tmp_path)).items():
        assert np.isfinite(value).all(), path


@pytest.mark.slow
def test_a_resumed_run_may_change_its_recipe(trained, digits, tmp_path, capsys):
    """And the formulation: all have the same parameters."""
    workdir = tmp_path / "run"
    shutil.copytree(trained[1], workdir)
    changes = {
        "duration": "9 steps",
        "optimizer.weight_decay": 0.0,
        "optimizer.clip_norm": 1.0,
        "model.formulation": "folded",
    }
    loop.train(prepare(tiny(digits, **changes)), workdir)
    out = capsys.readouterr().out
    assert "configuration changed: model.formulation: 'auto' -> 'folded'\n" in out
    assert "configuration changed: optimizer.weight_decay: 1e-05 -> 0.0" in out
    assert "resuming from step 8 of 9" in out and saved(workdir)[-1] == 9


@pytest.mark.parametrize(
    "name, value",
    [
        ("model.tokens", 4),
        ("seed", 1),
        ("batch_size", 16),
        ("ema.decay", 0.0),
        ("optimizer.momentum", 0.0),
    ],
)
def test_another_run_is_rejected(name, value, trained, digits):
    run, workdir, _ = trained
    record = RunRecord.of(tiny(digits, **{name: value}), run.train_source)
    with pytest.raises(UserError, match=f"holds another run .{name}: .*choose another"):
        check_resumable(workdir, record)


def test_a_run_beyond_its_duration_is_left_as_it_is(trained, digits):
    workdir = trained[1]
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="at step 8 already, beyond the 2 of duration"):
        loop.train(prepare(tiny(digits, duration="2 steps")), workdir)
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    assert before == after


@pytest.mark.slow
def test_a_checkpoint_is_saved_after_some_minutes(
    trained, digits, tmp_path, monkeypatch
):
    run, workdir, results = trained
    clock = iter(range(0, 10**6, 61))
    fake = types.SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(loop, "time", fake)
    changes = {"checkpoint.every": "8 steps", "checkpoint.minutes": 2.0}
    assert loop.train(prepare(tiny(digits, **changes)), tmp_path) == results
    steps = saved(tmp_path)
    assert len(steps) > 2 and steps[-1] == 8, steps
    assert_same(last_state(run, workdir), last_state(run, tmp_path))


def test_the_best_checkpoint_can_be_evaluated(trained, capsys):
    """That of the highest top-1 of the EMA, among all evaluations of the run."""
    _, workdir, _ = trained
    done = [r for r in read_metrics(workdir) if r["kind"] == "eval"]
    best = max(done, key=lambda r: (r["ema_top1"], -r["step"]))
    evaluate.main(["--workdir", str(workdir), "--best", "--format", "json"])
    found = {row["weights"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["ema"]["top1"] == round(best["ema_top1"], 3)
    assert found["raw"]["loss"] == round(best["raw_loss"], 5)
