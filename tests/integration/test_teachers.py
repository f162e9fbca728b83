"""Distillation from another run's network, from end to end."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from run_states import assert_same, changed, cut_off, last_state, leaves

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import make_mesh
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
# Width of the teacher alone.
WIDTH = 16


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


def distilled(digits: str, teacher: pathlib.Path, **changes) -> ConfigDict:
    return tiny(digits, **{"distillation.teacher": str(teacher), **changes})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, digits) -> pathlib.Path:
    """The workdir of a wider network, with two checkpoints."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    run = prepare(tiny(digits, **{"model.width": WIDTH}))
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


def test_a_resumed_run_with_a_teacher_equals_an_uninterrupted_one(
    teacher, digits, tmp_path, monkeypatch, capsys
):
    before = content(teacher)
    run = prepare(distilled(digits, teacher))
    loop.train(run, tmp_path / "whole")
    out = capsys.readouterr().out
    assert "distillation: teacher" in out and "resnet18, step 6, ema weights" in out
    records = [r for r in read_metrics(tmp_path / "whole") if r["kind"] == "train"]
    assert all(0 <= r["teacher_top1"] <= 1 for r in records)
    assert all(0 <= r["teacher_agreement"] <= 1 for r in records)
    assert content(teacher) == before
    expected = last_state(run, tmp_path / "whole")
    assert not any("teacher" in path for path in leaves(expected))

    with cut_off(monkeypatch, 3):
        loop.train(run, tmp_path / "again")
    loop.train(prepare(distilled(digits, teacher)), tmp_path / "again")
    assert_same(expected, last_state(run, tmp_path / "again"))


def test_a_teacher_has_the_ema_of_the_newest_checkpoint(teacher, digits):
    network = Teacher(distilled(digits, teacher))
    variables, description = network.load(prepare(tiny(digits)).task, make_mesh(fsdp=4))
    assert description.startswith("resnet18, step 6, ema weights (")
    own = prepare(tiny(digits, **{"model.width": WIDTH}))
    expected = last_state(own, teacher).ema_params
    jax.tree.map(np.testing.assert_array_equal, variables["params"], expected)


def test_newer_weights_of_the_teacher_are_reported(teacher, digits, tmp_path):
    record = RunRecord(distilled(digits, teacher).to_dict(), teacher="resnet18, step 4")
    record.write(tmp_path)
    assert check_resumable(tmp_path, record) == []
    other = dataclasses.replace(record, teacher="resnet18, step 6")
    (line,) = check_resumable(tmp_path, other)
    assert line == "the teacher: resnet18, step 4 -> resnet18, step 6"


def test_an_evaluation_needs_no_teacher(digits, tmp_path):
    assert prepare(distilled(digits, tmp_path / "gone")).task.metric == "top1"


def rejected(config, workdir) -> str:
    """Returns the error of a run that does not start; nothing is written."""
    with pytest.raises(UserError) as error:
        loop.train(prepare(config), workdir)
    assert not workdir.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unsuitable_teachers(teacher, digits, tmp_path):
    def made(name, config, class_names):
        """Makes a workdir whose weights are not read."""
        (tmp_path / name / "checkpoints" / "3").mkdir(parents=True)
        RunRecord(config.to_dict(), class_names).write(tmp_path / name)
        return distilled(digits, tmp_path / name)

    names = [str(i) for i in range(10)]
    run = tmp_path / "run"
    line = rejected(distilled(digits, tmp_path / "none"), run)
    assert line.startswith(f"distillation.teacher {tmp_path}/none: no checkpoint")
    line = rejected(made("turned", tiny(digits), names[::-1]), run)
    assert "its classes are not the dataset's (class 0: '9' -> '0'; class 1" in line
    config = distilled(digits, teacher, **{"data.std": [0.2, 0.25, 0.5]})
    assert "was trained with data.std [0.229, 0.224" in rejected(config, run)
    masks = resolve(ConfigDict({"model": {"name": "fpn_resnet18"}}))
    assert "fpn_resnet18 does not classify" in rejected(made("fpn", masks, names), run)
    wide = made("wide", tiny(digits, **{"model.width": 12}), names)
    (tmp_path / "wide" / "checkpoints" / "6").symlink_to(teacher / "checkpoints" / "6")
    assert "is not that of the resnet18 which its config.json" in rejected(wide, run)
    (tmp_path / "wide" / "config.json").unlink()
    assert "holds no run (config.json is missing)" in rejected(wide, run)
    damaged = made("damaged", tiny(digits, **{"model.width": WIDTH}), names)
    assert "cannot be read" in rejected(damaged, run)
