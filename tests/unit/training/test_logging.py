"""Metrics that a run logs."""

import io

import pytest

from vt_flax.errors import UserError
from vt_flax.training.logging import RunLogger
from vt_flax.training.workdir import METRICS_FILE, read_metrics


def test_a_run_goes_on_after_half_a_line(tmp_path):
    """As a killed run leaves it. TensorBoard takes no None, as of an absent class."""
    (tmp_path / METRICS_FILE).write_text(
        '{"kind": "train", "step": 1, "loss": 2.5}\n{"kind": "train", "st'
    )
    logger = RunLogger(tmp_path, tensorboard=True, stream=io.StringIO(), step=1)
    logger.write(2, {"loss": 1.5, "iou/nowhere": None}, "train")
    logger.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [
        (1, 2.5),
        (2, 1.5),
    ]
    assert read_metrics(tmp_path)[1]["iou/nowhere"] is None
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_full_disk_is_one_line():
    logger = RunLogger.__new__(RunLogger)
    logger._writer, logger._file = None, open("/dev/full", "w")
    with pytest.raises(UserError, match="/dev/full: No space left on device"):
        logger.write(1, {"loss": 1.0}, "train")
    logger.close()
