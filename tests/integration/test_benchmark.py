"""The benchmarks run, and their records hold what they claim; no rate is judged."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from vt_flax.cli import benchmark
from vt_flax.measure import step as measured_step
from vt_flax.models import create_model
from vt_flax.paper.macs import count
from vt_flax.plan import machine
from vt_flax.plan.topology import Chip

pytestmark = pytest.mark.slow

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
QUICKSTART, IMAGENET = (str(CONFIGS / f"{n}.py") for n in ("quickstart", "imagenet"))
QUICK = ["--seconds", "0.01", "--rounds", "1"]
TINY = {"width": 4, "stage_sizes": [1, 1, 1, 1], "stem": "small"}


def test_input(prepared_imagenet, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    arguments = ["input", "--config", IMAGENET, *QUICK, "--format", "json"]
    arguments += ["--config.data.image_size=32", "--config.data.eval_resize=36"]
    arguments += [f"--config.data.data_dir={prepared_imagenet}"]
    arguments += ["--compare", "imagenet2012", "--save", str(sheet)]
    benchmark.main(arguments)
    records = json.loads(capsys.readouterr().out)
    names = [record["variant"] for record in records]
    assert names == ["ours", "JPEG decoding alone", "ours, imagenet2012 train"]
    assert records[0]["ours_ratio"] == 1
    for record in records:
        ratio = records[0]["images_per_second"] / record["images_per_second"]
        assert record["ours_ratio"] == pytest.approx(ratio, rel=0.05, abs=0.01)

    with Image.open(sheet) as image:
        assert image.width > 1000
        # Four rows of augmented images and two of crops: more than captions on white.
        assert (np.asarray(image.convert("L")) < 250).mean() > 0.4


@pytest.fixture
def tiny_config(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        f"    return ConfigDict({{'model': {{'name': 'resnet18', **{TINY}}},\n"
        "        'data': {'image_size': 16}, 'ema': {'decay': 0.0}})\n"
    )
    return str(file)


def test_step(tiny_config, digits, monkeypatch, capsys):
    """Rates, compile time, memory, the training loop and MFU."""
    monkeypatch.setattr(measured_step, "SECONDS", 0.001)
    # A peak of a GFLOP/s for each of eight devices.
    known = Chip("a CPU", 9e12, 2**30, 1e9, float32_flops=1e9)
    monkeypatch.setitem(machine.CHIP_OF_KIND, "cpu", known)
    arguments = ["step", "--config", tiny_config, f"--config.data.data_dir={digits}"]
    arguments += ["--batch", "8", "--rounds", "2", "--warmup", "1"]
    benchmark.main([*arguments, "--format", "json"])
    out = capsys.readouterr()
    ours, loop, costs = json.loads(out.out)
    assert (ours["step"], loop["step"]) == ("ours", "loop")
    assert ours["batch"] == loop["batch"] == costs["batch"] == 8
    assert ours["ours over it"] == 1 and ours["what"] == "resnet18"
    assert loop["what"] == "resnet18 on digits train"
    ratio = loop["ms"] / ours["ms"]
    assert loop["ours over it"] == pytest.approx(ratio, rel=0.01)
    model = create_model("resnet18", num_classes=10, **TINY)
    macs = count(model, (16, 16)).total_macs
    share = 100 * 6 * macs * ours["images/s"] / 8e9
    assert ours["MFU %"] == pytest.approx(share, rel=1e-2)
    assert "peak, as published: 0.008 TFLOP/s" in out.err
    assert costs["tracing s"] > 0 and costs["compiling s"] > 0
    assert costs["working MB"] > 0
    # Parameters, and two arrays of RMSProp's; then statistics and an image of 0.8 kB.
    state = 12 * count(model).total_params / 1e6
    assert state < costs["arguments MB"] < 1.1 * state


def test_a_batch_that_does_not_fit(tiny_config, monkeypatch, capsys):
    """It is left out of the table, with a note; other errors are raised."""

    class Instant:
        """A step of a millisecond an image, for which no time passes."""

        size = (16, 16)
        model = create_model("resnet18", **TINY)
        error = "RESOURCE_EXHAUSTED: 9 GB\nfor 8 GB"

        def __init__(self, config, mesh, batch):
            self.batch = batch
            if batch > 8:
                raise jax.errors.JaxRuntimeError(self.error)

        def seconds(self, steps=1):
            return 1e-3 * self.batch

    monkeypatch.setattr(measured_step, "Step", Instant)
    monkeypatch.setattr(measured_step, "compile_step", lambda step: {})
    arguments = ["step", "--config", tiny_config, "--noise", "--batch", "8,16"]
    benchmark.main(arguments)
    out = capsys.readouterr().out
    assert "resnet18 at 16 x 16, a training step" in out
    assert "batch 16 does not fit into the device's memory" in out
    assert re.search(r"ours +8 +8\.0 +8\.0 +1000\.0 +1\.0", out)
    Instant.error = "INTERNAL: bug"
    with pytest.raises(jax.errors.JaxRuntimeError, match="bug"):
        benchmark.main(arguments)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["input", "--seconds", "nan"], "--seconds nan: must be positive and finite"),
        (["profile", "--batch", "8", "--trace", "/proc/x"], "--trace /proc/x: No such"),
        (["profile", "--trace", "x", "--steps", "0"], "--steps 0: must be positive"),
        (["input", "--compare", "digts"], "did you mean digits"),
        (["input", *QUICK], "no JPEGs among the first 500"),
        (["step", "--batch", "8,x"], "write batch sizes, such as 64,128"),
        (["step", "--batch", "8,0"], "--batch 0: must be at least 1"),
        (["step", "--batch", "12", "--noise"], "of the 8 devices"),
        (["step", "--peak", "high"], "invalid choice: 'high'"),
    ],
)
def test_bad_input(arguments, message, digits, refusal):
    command, *rest = arguments
    words = ["--config", QUICKSTART, *rest, f"--config.data.data_dir={digits}"]
    assert message in refusal(benchmark.main, command, *words)
