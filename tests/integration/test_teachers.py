"""Runs that learn from another run's network, from end to end."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict
from run_states import assert_same, changed, cut_off, last_state, leaves

from vt_flax.data import augment
from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.paper.macs import count
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.step import Step
from vt_flax.training import loop
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.run import prepare
from vt_flax.training.teacher import Teacher
from vt_flax.training.workdir import RunRecord, check_resumable, read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_steps")]

RESNET = {
    "name": "resnet18",
    "stem": "small",
    "stage_sizes": [1, 1, 1, 1],
    "width": 4,
}
# The teacher's, and its alone.
WIDTH = 16
OTHER = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]}


def tiny(digits: str, **changes) -> ConfigDict:
    """Returns a configuration of six steps on a few digits."""
    config = resolve(
        ConfigDict(
            {
                "batch_size": 16,
                "duration": "6 steps",
                "model": {**RESNET, "dropout": 0.1},
                "data": {
                    "data_dir": digits,
                    "image_size": 8,
                    "crop_padding": 1,
                    "train_split": "train[:100]",
                    "eval_split": "test[:24]",
                },
                "optimizer": {"name": "sgd"},
                "schedule": {"learning_rate": 0.05, "warmup": "2 steps"},
                "ema": {"decay": 0.9},
                "eval": {"every": "6 steps"},
                "checkpoint": {"every": "2 steps", "keep": 5},
                "log": {"every": "4 steps", "tensorboard": False},
                "compilation_cache": "",
            }
        )
    )
    return changed(config, changes)


def taught(digits: str, teacher: pathlib.Path, **changes) -> ConfigDict:
    return tiny(digits, **{"distillation.teacher": str(teacher), **changes})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, digits) -> pathlib.Path:
    """The workdir of a wider network with another normalization, of two checkpoints."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    changes = {"model.width": WIDTH, **{f"data.{k}": v for k, v in OTHER.items()}}
    run = prepare(tiny(digits, **changes))
    state = run.initial_state()
    checkpoints = Checkpoints(workdir, keep=2)
    for step in (4, 6):
        # Averages that are not the weights.
        average = jax.tree.map(lambda x, step=step: x * step, state.params)
        checkpoints.save(step, state.replace(ema_params=average))
    checkpoints.close()
    RunRecord.of(run.config, run.train_source).write(workdir)
    return workdir


def content(workdir):
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def test_a_run_with_a_teacher_resumed_equals_an_uninterrupted_one(
    teacher, digits, tmp_path, monkeypatch, capsys
):
    before = content(teacher)
    run = prepare(taught(digits, teacher))
    loop.train(run, tmp_path / "whole")
    out = capsys.readouterr().out
    assert "distillation: teacher" in out and "resnet18, step 6, ema weights" in out
    told = [r for r in read_metrics(tmp_path / "whole") if r["kind"] == "train"]
    assert all(0 <= r["teacher_top1"] <= 1 for r in told)
    assert all(0 <= r["teacher_agreement"] <= 1 for r in told)
    assert content(teacher) == before
    expected = last_state(run, tmp_path / "whole")
    assert not any("teacher" in path for path in leaves(expected))

    with cut_off(monkeypatch, 3):
        loop.train(run, tmp_path / "again")
    shutil.copytree(tmp_path / "again", tmp_path / "without")
    loop.train(prepare(taught(digits, teacher)), tmp_path / "again")
    assert_same(expected, last_state(run, tmp_path / "again"))

    # The teacher may be taken away; a report then tells what all its steps measured.
    loop.train(prepare(tiny(digits, duration="4 steps")), tmp_path / "without")
    told = [r for r in read_metrics(tmp_path / "without") if r["kind"] == "train"]
    assert [r["step"] for r in told] == [4]
    assert "teacher_top1" not in told[0] and np.isfinite(told[0]["loss"])


def test_a_teacher_sees_the_images_as_it_was_trained_to(teacher, digits):
    config = taught(digits, teacher)
    it = Teacher(config)
    task = prepare(tiny(digits)).task
    variables, told = it.load(task, make_mesh(fsdp=4))
    assert told.startswith("resnet18, step 6, ema weights (")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    found = jax.jit(it.__call__)(variables, augment.normalize(images, config.data))
    pixels = (images / 255 - OTHER["mean"]) / OTHER["std"]
    own = jax.jit(it.model.apply)
    expected = own(jax.device_get(variables), np.float32(pixels))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    # The averages: those of the newest checkpoint.
    own = tiny(digits, **{"model.width": WIDTH})
    arrays = leaves(last_state(prepare(own), teacher))
    for path, value in traverse_util.flatten_dict(variables["params"]).items():
        key = ".ema_params" + "".join(f"[{part!r}]" for part in path)
        np.testing.assert_array_equal(value, arrays[key])


def test_another_teacher_in_the_same_place_is_told(teacher, digits, tmp_path):
    """As of a run that went on in the meantime."""
    record = RunRecord(taught(digits, teacher).to_dict(), teacher="resnet18, step 4")
    record.write(tmp_path)
    assert check_resumable(tmp_path, record) == []
    other = dataclasses.replace(record, teacher="resnet18, step 6")
    (line,) = check_resumable(tmp_path, other)
    assert line == "the teacher: resnet18, step 4 -> resnet18, step 6"


def test_what_was_learnt_needs_no_teacher(digits, tmp_path):
    """To evaluate it, say."""
    assert prepare(taught(digits, tmp_path / "gone")).task.metric == "top1"


def refused(config, workdir) -> str:
    """Returns the line with which a run does not start; nothing is written."""
    with pytest.raises(UserError) as error:
        loop.train(prepare(config), workdir)
    assert not workdir.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_teach_is_one_line(teacher, digits, tmp_path):
    def made(name, config, class_names):
        """A workdir of which nobody reads the weights."""
        (tmp_path / name / "checkpoints" / "3").mkdir(parents=True)
        RunRecord(config.to_dict(), class_names).write(tmp_path / name)
        return taught(digits, tmp_path / name)

    names = [str(i) for i in range(10)]
    run = tmp_path / "run"
    line = refused(taught(digits, tmp_path / "none"), run)
    assert line.startswith(f"distillation.teacher {tmp_path}/none: no checkpoint")
    line = refused(made("hundred", tiny(digits), ["x"] * 100), run)
    assert "its classes are not the dataset's (classes: 100 -> 10)" in line
    line = refused(made("turned", tiny(digits), names[::-1]), run)
    assert "its classes are not the dataset's (class 0: '9' -> '0'; class 1" in line
    masks = resolve(ConfigDict({"model": {"name": "fpn_resnet18"}}))
    assert "fpn_resnet18 does not classify" in refused(made("fpn", masks, names), run)
    wide = made("wide", tiny(digits, **{"model.width": 12}), names)
    (tmp_path / "wide" / "checkpoints" / "6").symlink_to(teacher / "checkpoints" / "6")
    assert "is not that of the resnet18 which its config.json" in refused(wide, run)
    (tmp_path / "wide" / "config.json").unlink()
    assert "holds no run (config.json is missing)" in refused(wide, run)
    damaged = made("damaged", tiny(digits, **{"model.width": WIDTH}), names)
    assert "cannot be read" in refused(damaged, run)


def test_the_cost_of_a_step_counts_the_teacher(teacher, digits):
    config = taught(digits, teacher)
    step = Step(config, make_mesh(jax.devices()[:1]), 8)
    step.start()
    student, its = (
        count(create_model(**{**RESNET, "width": w, "num_classes": 10}), (8, 8))
        for w in (RESNET["width"], WIDTH)
    )
    # The student's, forward and backward, are fewer; the borders of an image cost less.
    assert its.total_macs > 8 * student.total_macs
    assert step.trace().lower().compile().cost_analysis()["flops"] > 8 * its.total_macs
