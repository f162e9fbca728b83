"""The benchmarks run, and their records are of what they say; no rate is judged."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from test_bad_input import refusal

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


def records_of(arguments, capsys):
    benchmark.main(["step", *arguments, "--format", "json"])
    told = capsys.readouterr()
    return json.loads(told.out), told.err


def test_step(tiny_config, digits, monkeypatch, capsys):
    """With compiling, the training loop and MFU."""
    monkeypatch.setattr(measured_step, "SECONDS", 0.001)
    # For the processes that compile.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    arguments = ["--config", tiny_config, f"--config.data.data_dir={digits}"]
    arguments += ["--batch", "8", "--rounds", "3", "--warmup", "1"]
    records, told = records_of([*arguments, "--peak", "measured"], capsys)
    ours, loop = records
    assert (ours["step"], loop["step"]) == ("ours", "loop")
    assert ours["ours_ratio"] == 1 and ours["what"] == "resnet18"
    assert loop["what"] == "resnet18 on digits train"
    ratio = loop["ms"] / ours["ms"]
    assert loop["ours_ratio"] == pytest.approx(ratio, rel=0.01)
    assert ours["trace_s"] > 0 and ours["compile_s"] > 0
    assert ours["cached_s"] is not None  # the second found it in the cache
    assert ours["working_mb"] > 0 and ours["peak_mb"] is None
    # Parameters, and two arrays of RMSProp's; then statistics and an image of 0.8 kB.
    model = create_model("resnet18", num_classes=10, **TINY)
    state = 12 * count(model).total_params / 1e6
    assert state < ours["arguments_mb"] < 1.1 * state
    assert loop["compile_s"] is None
    assert ours["mfu"] > 0 and loop["mfu"] > 0
    assert "peak, by products of matrices here" in told


@pytest.fixture
def instant(monkeypatch):
    """Steps of a millisecond an image, that take no time.

    Returns the number of microbatches that they were made with, by batch size.
    """
    microbatches = {}

    class Instant:
        size = (16, 16)
        model = create_model("resnet18", **TINY)

        def __init__(self, config, mesh, batch):
            self.batch, self.started = batch, False
            microbatches[batch] = config.grad_accum_steps

        def start(self):
            self.started = True

        def seconds(self, steps=1):
            assert self.started
            return 1e-3 * self.batch

    monkeypatch.setattr(measured_step, "Step", Instant)
    return microbatches


def test_batches(tiny_config, instant, monkeypatch, capsys):
    """Several, on devices whose peak is known, and what is derived from them."""
    with open(tiny_config, "a") as file:
        file.write(
            "_get_config = get_config\n"
            "def get_config():\n"
            "    config = _get_config()\n"
            "    config.batch_size = 256\n"
            "    config.grad_accum_steps = config.get_ref('batch_size') // 8\n"
            "    return config\n"
        )
    known = Chip("a CPU", 9e12, 2**30, 1e9, single=1e9)
    monkeypatch.setitem(machine.CHIP_OF_KIND, "cpu", known)
    arguments = ["--config", tiny_config, "--batch", "8,16", "--rounds", "2"]
    arguments += ["--noise", "--no_compile"]
    records, told = records_of(arguments, capsys)
    assert [r["batch"] for r in records] == [8, 16]
    assert instant == {8: 1, 16: 2}
    assert [r["ms"] for r in records] == [8, 16]
    assert [r["images_per_second"] for r in records] == [1000, 1000]
    assert all(r["compile_s"] is r["working_mb"] is None for r in records)
    # Of eight devices with a GFLOP/s each.
    macs = count(create_model("resnet18", **TINY), (16, 16)).total_macs
    share = 100 * 6 * macs * 1000 / 8e9
    assert records[0]["mfu"] == pytest.approx(share, rel=1e-2)
    assert "peak, as published: 0.008 TFLOP/s" in told


def test_table_without_the_dataset(tiny_config, instant, capsys):
    arguments = ["step", "--config", tiny_config, "--config.data.name=imagenet2012"]
    arguments += ["--config.data.data_dir=/nowhere", "--batch", "8", "--rounds", "1"]
    benchmark.main([*arguments, "--warmup", "1", "--no_compile"])
    told = capsys.readouterr().out
    assert "resnet18 at 16 x 16, a training step" in told
    assert "the whole loop is left out: " in told and "imagenet2012" in told
    assert "compiling s" not in told


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["input", "--seconds", "0"], "--seconds 0.0: must be positive"),
        (["input", "--seconds", "nan"], "--seconds nan: must be positive and finite"),
        (["profile", "--batch", "8", "--trace", "/proc/x"], "--trace /proc/x: No such"),
        (["input", "--rounds", "0"], "--rounds 0: must be positive"),
        (["input", "--compare", "digts"], "did you mean digits"),
        (["input", "--save", "/proc/none/sheet.png"], "--save /proc/none/sheet.png"),
        (["input", *QUICK], "no JPEGs among the first 500"),
        (["input", "--config.data.augment=auto"], "did you mean autoaugment"),
        (["step", "--batch", "8,x"], "write batch sizes, such as 64,128"),
        (["step", "--batch", "8,0"], "--batch 0: must be at least 1"),
        (["step", "--batch", "12", "--noise", "--no_compile"], "of the 8 devices"),
        (["step", "--warmup", "0"], "--warmup 0: must be positive"),
        (["step", "--peak", "high"], "invalid choice: 'high'"),
        (["rate"], "invalid choice: 'rate'"),
    ],
)
def test_bad_input(arguments, message, digits, monkeypatch, capsys):
    command, *rest = arguments
    line = refusal(
        benchmark.main,
        [command, "--config", QUICKSTART, *rest, f"--config.data.data_dir={digits}"],
        monkeypatch,
        capsys,
    )
    assert message in line
