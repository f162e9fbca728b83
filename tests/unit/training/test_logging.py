"""What a run writes down."""

import io
import json
import types

import jax
import psutil
import pytest

from vt_flax.errors import UserError
from vt_flax.training.logging import RunLogger, memory
from vt_flax.training.workdir import METRICS_FILE, read_metrics


def test_half_a_line_does_not_swallow_the_next_one(tmp_path):
    """What a kill leaves behind."""
    (tmp_path / METRICS_FILE).write_text(
        '{"kind": "train", "step": 1, "loss": 2.5}\n{"kind": "train", "st'
    )
    logger = RunLogger(tmp_path, tensorboard=False, stream=io.StringIO())
    logger.write(2, {"loss": 1.5}, "train")
    logger.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [
        (1, 2.5),
        (2, 1.5),
    ]


def test_what_has_no_value_is_recorded_as_such(tmp_path):
    """As the IoU of a class that is nowhere; TensorBoard takes numbers alone."""
    logger = RunLogger(tmp_path, tensorboard=True, stream=io.StringIO())
    logger.write(1, {"raw_iou/nowhere": None, "raw_miou": 5.0}, "eval")
    logger.close()
    (record,) = read_metrics(tmp_path)
    assert record["raw_iou/nowhere"] is None and record["raw_miou"] == 5


def test_a_full_disk_is_a_line():
    logger = RunLogger.__new__(RunLogger)
    logger._writer, logger._file = None, open("/dev/full", "w")
    with pytest.raises(UserError, match="/dev/full: No space left on device"):
        logger.write(1, {"loss": 1.0}, "train")
    logger.close()


def test_memory_of_the_process_and_of_the_fullest_device(monkeypatch):
    found = memory()
    assert found["host_memory"] == pytest.approx(
        psutil.Process().memory_info().rss, rel=0.2
    )
    stats = [None, {"bytes_in_use": 5, "peak_bytes_in_use": 9}, {"bytes_in_use": 7}]
    devices = [types.SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    found = memory()
    assert found["device_memory"] == 7 and found["device_memory_peak"] == 9
    assert json.dumps(found)


def test_tensorboard_forgets_what_is_repeated(tmp_path, monkeypatch):
    made = []
    import tensorboardX

    monkeypatch.setattr(
        tensorboardX, "SummaryWriter", lambda *a, **k: made.append(k) or io.BytesIO()
    )
    for step in (0, 40):
        RunLogger(tmp_path, tensorboard=True, stream=io.StringIO(), step=step).close()
    assert made == [{"purge_step": None}, {"purge_step": 41}]
    assert read_metrics(tmp_path) == []
