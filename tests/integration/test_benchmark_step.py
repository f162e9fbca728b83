"""`benchmark step` runs, and its records are of what they say; no rate is judged."""

import json
import pathlib
import types

import numpy as np
import pytest
from test_bad_input import refusal

from vt_flax import benchmark
from vt_flax.analysis.references import beside
from vt_flax.measure import step_rate, step_report
from vt_flax.models import create_model
from vt_flax.paper.macs import count
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan import peaks
from vt_flax.plan.step import Step
from vt_flax.plan.topology import Chip
from vt_flax.plan.tpu_compiler import has_tpu_compiler
from vt_flax.training.config import load_config

pytestmark = pytest.mark.slow

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


TINY = {"width": 4, "stage_sizes": [1, 1, 1, 1], "stem": "small"}


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(step_rate, "TURN_SECONDS", 0.001)
    # More threads of PyTorch would wait for each other, beside other tests.
    monkeypatch.setattr(beside, "cores", lambda: 1)
    # For the processes that compile.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")


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


@pytest.mark.usefixtures("torch")
def test_step(tiny_config, digits, capsys):
    """With a reference beside, compiling, the whole loop and MFU."""
    arguments = ["--config", tiny_config, f"--config.data.data_dir={digits}"]
    arguments += ["--batch", "8", "--rounds", "3", "--warmup", "1"]
    arguments += ["--against", "torch_eager", "--peak", "measured"]
    # Of 4 channels, PyTorch 2.13 hangs or ends on processors that have no AVX-512.
    wider = {**TINY, "width": 8}
    arguments += ["--config.model.width=8"]
    records, told = records_of(arguments, capsys)
    assert [r["step"] for r in records] == ["ours", "torch_eager", "loop"]
    ours, torch, loop = records
    assert ours["ours_ratio"] == 1 and ours["what"] == "resnet18"
    assert "eager, CPU, 1 threads" in torch["what"]
    assert loop["what"] == "resnet18 on digits train"
    ratio = loop["ms"] / ours["ms"]
    assert loop["ours_ratio"] == pytest.approx(ratio, rel=0.01)
    assert ours["trace_s"] > 0 and ours["compile_s"] > 0
    assert ours["cached_s"] is not None  # the second found it in the cache
    assert ours["working_mb"] > 0 and ours["peak_mb"] is None
    # Parameters, and two arrays of RMSProp's; then statistics and an image of 0.8 kB.
    model = create_model("resnet18", num_classes=10, **wider)
    state = 12 * count(model).total_params / 1e6
    assert state < ours["arguments_mb"] < 1.1 * state
    assert torch["compile_s"] is loop["compile_s"] is None
    assert all(record["mfu"] > 0 for record in records)
    assert "resnet18 has besides: mirroring" in told
    assert "peak, by products of matrices here" in told


@pytest.fixture
def instant(monkeypatch):
    """Steps that take no time, and say that an image takes one or two ms.

    Returns the parts of a batch that they were made with, by batch size.
    """
    parts = {}

    class Instant:
        each = 1e-3

        def __init__(self, config, mesh, batch):
            self.batch, self.started = batch, False
            parts[batch] = config.grad_accum_steps

        def start(self):
            self.started = True

        def seconds(self, steps=1):
            assert self.started
            return self.each * self.batch

    class Slower(Instant):
        each = 2e-3

    steps = {"ours": Instant, "flax_resnet": Slower}
    monkeypatch.setattr(step_rate, "STEPS", steps)
    return parts


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
    monkeypatch.setitem(peaks.OF_KIND, "cpu", known)
    arguments = ["--config", tiny_config, "--against", "flax_resnet,flax_resnet"]
    arguments += ["--batch", "8,16", "--rounds", "2", "--noise", "--no_compile"]
    records, told = records_of(arguments, capsys)
    assert [r["step"] for r in records] == ["ours", "flax_resnet"] * 2
    assert [r["batch"] for r in records] == [8, 8, 16, 16]
    assert instant == {8: 1, 16: 2}
    assert [r["ms"] for r in records] == [8, 16, 16, 32]
    assert [r["images_per_second"] for r in records] == [1000, 500] * 2
    assert [r["ours_ratio"] for r in records] == [1, 2] * 2
    assert records[0]["ms_quartiles"] == [8, 8]
    assert records[1]["what"].startswith("ResNet-18, Flax")
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


def test_segmentation_has_no_references(instant, capsys):
    file = f"{CONFIGS / 'segmentation.py'}:shapes,fpn,resnet18"
    options = [
        "--config.model.stage_sizes=[1,1,1,1]",
        "--config.parallel.cpu_devices=0",
    ]
    options += ["--config.segmentation.canvas=[32,32]"]
    options += ["--config.segmentation.crop=[32,32]"]
    arguments = ["--config", file, *options, "--batch", "8", "--rounds", "1"]
    arguments += ["--noise", "--no_compile", "--against", "flax_resnet"]
    (record,), told = records_of(arguments, capsys)
    assert record["step"] == "ours" and record["what"] == "fpn_resnet18"
    assert "flax_resnet is left out: there is no plain ResNet" in told
    # The real one can be traced, on masks of as many classes as it tells apart.
    step = Step(load_config(file, options), make_mesh(), 8)
    assert step.trace().out_info[1]["pixel_accuracy"].shape == ()
    assert step._noise(8)["label"].max() < 150


@pytest.mark.skipif(
    not has_tpu_compiler(), reason='needs libtpu: pip install "jax[tpu]"'
)
def test_compiled_for_tpus(tiny_config, capsys):
    arguments = ["--config", tiny_config, "--topology", "v5e:2x2", "--chip", "2"]
    records, told = records_of([*arguments, "--against", "flax_resnet,torch"], capsys)
    assert [record["step"] for record in records] == ["ours", "flax_resnet"]
    ours, plain = records
    for record in records:
        assert record["working_gb"] > 0 and record["all-reduce"] > 0
        # Forward and backward; borders of images cost less, and small things more.
        macs = count(create_model("resnet18", **TINY), (16, 16)).total_macs
        assert 0.5 < record["gflop_an_image"] * 1e9 / (6 * macs) < 2
    assert ours["ours_bytes"] == 1
    ratio = ours["mb_an_image"] / plain["mb_an_image"]
    assert plain["ours_bytes"] == pytest.approx(ratio, rel=0.05)
    assert "torch is left out: it runs on no TPU" in told


@pytest.mark.parametrize(
    "platform, count, reason",
    [("tpu", 1, "no TPU"), ("gpu", 2, "on one GPU"), ("gpu", 1, ""), ("cpu", 2, "")],
)
def test_pytorch_runs_where_it_can(platform, count, reason):
    devices = np.asarray([types.SimpleNamespace(platform=platform)] * count)
    mesh, notes = types.SimpleNamespace(devices=devices, size=count), []
    names = ["flax_resnet", "torch", "timm"]
    found = step_report._comparable(names, mesh, notes)
    assert found == (names[:1] if reason else names)
    assert len(notes) == (2 if reason else 0)
    assert all(reason in note for note in notes)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--against", "flax"], "did you mean flax_resnet"),
        (["--batch", "8,x"], "write numbers of examples, such as 64,128"),
        (["--batch", "8,0"], "--batch 0: must be at least 1"),
        (["--batch", "12", "--noise", "--no_compile"], "multiple of the 8 devices"),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--warmup", "0"], "--warmup 0: must be at least 1"),
        (["--batch", "8", "--topology", "v5e:2x2"], "it is --chip that counts"),
        (["--peak", "high"], "invalid choice: 'high'"),
        (
            ["--config.model.bn_group_size=5", "--noise", "--no_compile"],
            "does not divide",
        ),
    ],
)
def test_bad_input(arguments, message, tiny_config, monkeypatch, capsys):
    line = refusal(
        benchmark.main,
        ["step", "--config", tiny_config, *arguments],
        monkeypatch,
        capsys,
    )
    assert message in line
