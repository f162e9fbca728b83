"""Training, resuming and evaluating a tiny network, from end to end."""

import io
import itertools
import json
import os
import shutil
import signal
import types

import jax
import numpy as np
import pytest
from flax import traverse_util
from kills import LONG
from ml_collections import ConfigDict
from pods import measured, pod
from run_states import assert_same, changed, cut_off, last_state, leaves

from vt_flax.cli import evaluate
from vt_flax.data import augment
from vt_flax.data.batches import eval_batches
from vt_flax.errors import UserError
from vt_flax.parallel import processes
from vt_flax.training import evaluation, loop
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.progress import Diverged
from vt_flax.training.requests import Stopped
from vt_flax.training.run import prepare
from vt_flax.training.state import weights_of
from vt_flax.training.workdir import read_metrics

pytestmark = pytest.mark.usefixtures("shared_steps")


def tiny(digits: str, **changes) -> ConfigDict:
    """Returns a configuration of eight steps on a few digits."""
    config = resolve(
        ConfigDict(
            {
                "batch_size": 32,
                "duration": "8 steps",
                "model": {
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
                },
                "data": {
                    "data_dir": digits,
                    "image_size": 16,
                    "train_split": "train[:100]",
                    "eval_split": "test[:45]",
                },
                "schedule": {"learning_rate": 0.01, "warmup": "2 steps"},
                "eval": {"every": "8 steps"},
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


@pytest.mark.slow
def test_a_run_learns_and_writes_what_it_saw(trained):
    run, workdir, results = trained
    records = read_metrics(workdir)
    train = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in train] == [2, 4, 6, 8]
    assert train[-1]["loss"] < train[0]["loss"]
    assert train[-1]["epoch"] == pytest.approx(8 * 32 / 100)
    assert all(r["host_memory"] > 1e8 for r in train)
    (trace,) = (workdir / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    (evaluation,) = [r for r in records if r["kind"] == "eval"]
    assert evaluation["step"] == 8
    assert evaluation["raw_top1"] == results["raw"]["top1"]
    assert json.loads((workdir / "config.json").read_text())["config"] == (
        run.config.to_dict()
    )


def test_what_comes_before_the_first_step_is_progress(digits, monkeypatch):
    """Large datasets take long to open: nobody is to be taken for stalled."""
    told = []
    monkeypatch.setattr(processes, "report", told.append)
    prepare(tiny(digits))
    assert told == [
        "opening the training split",
        "opening the evaluation split",
        "building the network",
    ]


@pytest.mark.slow
def test_evaluation_equals_a_recount_image_by_image(trained):
    run, workdir, results = trained
    state = last_state(run, workdir)
    (batch,) = eval_batches(run.eval_source, run.config.data, batch=45)
    images = augment.normalize(batch["image"], run.config.data)
    for name, (params, stats) in weights_of(state).items():
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


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    trained, digits, tmp_path, monkeypatch
):
    run, workdir, _ = trained
    again = prepare(tiny(digits))
    with cut_off(monkeypatch, 5):
        loop.train(again, tmp_path / "run")
    assert Checkpoints(tmp_path / "run", read_only=True).steps() == [3]
    loop.train(prepare(tiny(digits)), tmp_path / "run")

    assert_same(last_state(run, workdir), last_state(run, tmp_path / "run"))
    # The report of steps 3 and 4 too, of which the restart saw only one.
    assert measured(tmp_path) == measured(workdir.parent)


@pytest.mark.slow
def test_a_run_is_the_same_in_a_program_of_64_bits(trained, digits, tmp_path):
    run, workdir, results = trained
    with jax.enable_x64(True):
        assert loop.train(prepare(tiny(digits)), tmp_path / "run") == results
    assert_same(last_state(run, workdir), last_state(run, tmp_path / "run"))


@pytest.mark.slow
def test_the_command_takes_no_notice_of_64_bits(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    changes = LONG | {"data.data_dir": digits, "duration": "2 steps"}
    with pod(tmp_path, [changes]) as (process,):
        assert process.end() == 0, process.err
    *_, record = read_metrics(tmp_path / "run")
    assert record["kind"] == "eval" and record["raw_loss"] == pytest.approx(2.3, abs=1)


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    trained, digits, tmp_path, capsys
):
    """The result is that of the run that was not disturbed."""
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
def test_a_finished_run_says_that_nothing_is_left(trained, capsys):
    run, workdir, results = trained
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    del before[workdir / "config.json"]
    assert loop.train(run, workdir) == results
    assert "nothing left to do" in capsys.readouterr().out
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())


@pytest.mark.slow
def test_an_evaluation_on_the_way_that_was_cut_off_is_made_up_for(
    trained, digits, tmp_path, monkeypatch
):
    run, workdir, _ = trained
    evaluate = loop.evaluate
    steps = iter((3, 6))

    def cut_off(*args):
        if next(steps) == 6:
            raise KeyboardInterrupt
        return evaluate(*args)

    often = prepare(tiny(digits, **{"eval.every": "3 steps"}))
    monkeypatch.setattr(loop, "evaluate", cut_off)
    with pytest.raises(KeyboardInterrupt):
        loop.train(often, tmp_path)
    monkeypatch.undo()
    loop.train(often, tmp_path)
    done = [r["step"] for r in read_metrics(tmp_path) if r["kind"] == "eval"]
    assert done == [3, 6, 8]
    assert_same(last_state(run, workdir), last_state(run, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1, 4])
def test_a_sigterm_loses_no_step(moment, trained, digits, tmp_path, monkeypatch):
    """A real signal, between checkpoints, and the end result to the bit.

    It is answered with the step after the one that it travels with.
    """
    run, workdir, results = trained
    batches = loop.device_batches
    before = signal.getsignal(signal.SIGTERM)

    def signalled(run, source, first):
        for i, batch in enumerate(batches(run, source, first), first):
            if i == moment:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(loop, "device_batches", signalled)
    with pytest.raises(Stopped, match=f"after step {moment + 2} of 8, which is saved"):
        loop.train(prepare(tiny(digits)), tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) == before
    saved = Checkpoints(tmp_path / "run", read_only=True).steps()
    assert saved[-1] == moment + 2
    monkeypatch.setattr(loop, "device_batches", batches)
    assert loop.train(prepare(tiny(digits)), tmp_path / "run") == results
    assert_same(last_state(run, workdir), last_state(run, tmp_path / "run"))


@pytest.mark.slow
def test_a_sigterm_cuts_off_an_evaluation(trained, digits, tmp_path, monkeypatch):
    run, _, results = trained
    read = eval_batches
    seen = []

    def endless(*args, **options):
        (batch, _) = read(*args, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        for i in range(100):
            seen.append(i)
            yield batch

    monkeypatch.setattr(evaluation, "eval_batches", endless)
    with pytest.raises(Stopped, match="after step 8 of 8"):
        loop.train(run, tmp_path / "run")
    assert len(seen) < 4
    monkeypatch.undo()
    assert not any(r["kind"] == "eval" for r in read_metrics(tmp_path / "run"))
    assert loop.train(run, tmp_path / "run") == results


@pytest.mark.slow
def test_the_command_ends_with_status_4_at_a_sigterm(digits, tmp_path):
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
    assert Checkpoints(tmp_path / "run", read_only=True).steps()[-1] == step >= 3


@pytest.mark.slow
def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(digits, tmp_path):
    config = tiny(
        digits,
        **{
            "schedule.name": "step",
            "schedule.warmup": "0 steps",
            # The fifth update, made at rate 1e30, ruins the sixth step's loss.
            "schedule.boundaries": ["4 steps"],
            "schedule.decay_factor": 1e32,
        },
    )
    run = prepare(config)
    with pytest.raises(Diverged, match=r"step 6 .*checkpoint of step 3 is kept"):
        loop.train(run, tmp_path)
    assert Checkpoints(tmp_path, read_only=True).steps() == [3]
    for path, value in leaves(last_state(run, tmp_path)).items():
        assert np.isfinite(value).all(), path


@pytest.mark.slow
def test_a_run_may_go_on_under_another_rate_and_decay_but_not_another_model(
    trained, digits, tmp_path, capsys
):
    short = tiny(digits, duration="3 steps")
    loop.train(prepare(short), tmp_path)
    longer = tiny(
        digits,
        **{
            "duration": "4 steps",
            "optimizer.weight_decay": 0.0,
            "optimizer.clip_norm": 1.0,
            "model.formulation": "folded",
        },
    )
    loop.train(prepare(longer), tmp_path)
    out = capsys.readouterr().out
    assert "formulation: fused (auto on cpu: fastest by BENCHMARKS.md)\n" in out
    assert "configuration changed: model.formulation: 'auto' -> 'folded'\n" in out
    assert "configuration changed: optimizer.weight_decay: 1e-05 -> 0.0" in out
    assert "resuming from step 3 of 4" in out

    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for change in (
        {"model.tokens": 4},
        {"model.name": "vt_resnet34"},
        {"seed": 1},
        {"batch_size": 16},
        {"ema.decay": 0.0},
        {"optimizer.momentum": 0.0},
        {"duration": "2 steps"},
    ):
        other = tiny(digits, **{"duration": "4 steps", **change})
        with pytest.raises(UserError, match="another run|beyond"):
            loop.train(prepare(other), tmp_path)
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert before == after


@pytest.mark.slow
def test_a_checkpoint_comes_after_some_minutes_at_the_latest(
    trained, digits, tmp_path, monkeypatch
):
    run, workdir, results = trained
    clock = iter(range(0, 10**6, 61))
    monkeypatch.setattr(
        loop, "time", types.SimpleNamespace(monotonic=lambda: next(clock))
    )
    changes = {"checkpoint.every": "8 steps", "checkpoint.minutes": 2.0}
    assert loop.train(prepare(tiny(digits, **changes)), tmp_path) == results
    steps = [r["step"] for r in read_metrics(tmp_path) if r["kind"] == "checkpoint"]
    assert len(steps) > 2 and steps[-1] == 8, steps
    assert_same(last_state(run, workdir), last_state(run, tmp_path))


@pytest.mark.slow
def test_what_is_asked_for_while_an_evaluation_begins_is_saved(
    digits, tmp_path, monkeypatch
):
    """By the very step that is evaluated, whose answer is read just before."""
    batches, usual = itertools.count(1), loop.Requests.batch

    def asking(self):
        if next(batches) == 4:
            self.save()
        return usual(self)

    monkeypatch.setattr(loop.Requests, "batch", asking)
    changes = {"eval.every": "4 steps", "checkpoint.every": "8 steps"}
    loop.train(prepare(tiny(digits, **changes)), tmp_path)
    steps = [r["step"] for r in read_metrics(tmp_path) if r["kind"] == "checkpoint"]
    assert steps == [4, 8]


@pytest.mark.slow
def test_the_best_checkpoint_can_be_evaluated(digits, tmp_path, capsys):
    """By the averages' top-1, of all evaluations on the way."""
    config = tiny(digits, **{"eval.every": "2 steps"})
    loop.train(prepare(config), tmp_path)
    done = [r for r in read_metrics(tmp_path) if r["kind"] == "eval"]
    assert [r["step"] for r in done] == [2, 4, 6, 8]
    best = max(done, key=lambda r: (r["ema_top1"], -r["step"]))
    capsys.readouterr()
    evaluate.main(["--workdir", str(tmp_path), "--best", "--format", "json"])
    found = {row["weights"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["ema"]["top1"] == round(best["ema_top1"], 3)
    assert found["raw"]["loss"] == round(best["raw_loss"], 5)


def test_averages_are_of_parameters_and_of_batch_statistics(trained):
    run, workdir, _ = trained
    state = last_state(run, workdir)
    for raw, average in (
        (state.params, state.ema_params),
        (state.batch_stats, state.ema_batch_stats),
    ):
        raw, average = (
            traverse_util.flatten_dict(jax.device_get(tree)) for tree in (raw, average)
        )
        assert raw.keys() == average.keys()
        assert any(np.abs(raw[k] - average[k]).max() > 1e-6 for k in raw)


@pytest.mark.slow
def test_an_unreadable_image_stops_the_run_and_names_the_file(tmp_path):
    from PIL import Image

    for label in "ab":
        for i in range(20):
            folder = tmp_path / "images" / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (9 * i, 0, 0)).save(folder / f"{i}.png")
    broken = tmp_path / "images" / "b" / "7.png"
    broken.write_bytes(broken.read_bytes()[:40])
    config = tiny(
        "",
        **{
            "data.name": f"folder:{tmp_path / 'images'}",
            "data.train_split": "all",
            "data.eval_split": "all",
            "duration": "3 epochs",
        },
    )
    stream = io.StringIO()
    with pytest.raises(UserError, match=r"b/7\.png: not a readable image"):
        loop.train(prepare(config), tmp_path / "run", stream)
    assert "note: 40 of the 40 examples of folder:" in stream.getvalue()
