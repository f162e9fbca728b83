"""The command `plan`: its results, and one line for bad input."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tpu_programs import needs_tpu_compiler

from vt_flax.cli import plan
from vt_flax.plan import machine, planning, tpu_compiler
from vt_flax.plan.topology import parse_topology

pytestmark = pytest.mark.slow

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
IMAGENET = str(CONFIGS / "imagenet.py")
# As small as can be, so that the TPU compiler has little to do.
TINY = [
    *("--config", f"{IMAGENET}:resnet18"),
    *("--config.model.width=8", "--config.model.stage_sizes=[1,1,1,1]"),
    *("--config.data.image_size=32", "--config.data.augment=none"),
    *("--config.optimizer.name=sgd", "--config.ema.decay=0"),
]
# Plans for TPUs in a process of its own, as the environment is read when JAX starts.
PROGRAM = """
import sys
from vt_flax.cli import plan
plan.main(sys.argv[1:])
from vt_flax.plan.tpu_compiler import tpu_devices
for name in ("v4:2x2x1", "v5p:2x2x1", "v5e:1x1", "v6e:2x2", "tpu7x:2x2x2"):
    found = tpu_devices(name)
    hosts = len({device.process_index for device in found})
    print(name, len(found), hosts, found[0].device_kind)
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The environment of other tests stays."""
    monkeypatch.setattr(plan, "ENVIRONMENT", {})


@needs_tpu_compiler
def test_a_pod():
    """By the real compiler, and the devices of topologies."""
    arguments = [*TINY, "--topology", "v5e:2x2", "v5e:3x3", "--chip", "16"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, "--format", "json"],
        env=os.environ | tpu_compiler.ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (row, rejected), end = json.JSONDecoder().raw_decode(done.stdout)
    assert 'layout "v5e:3x3" is not divisible' in rejected["problem"]
    assert (row["chips"], row["hosts"], row["batch"]) == (4, 1, 64)
    parts = ("parameters", "optimizer", "ema", "batch", "teacher", "working")
    assert row["memory_peak"] == sum(row[f"memory_{part}"] for part in parts)
    assert row["memory_batch"] >= 16 * 32 * 32 * 3
    # Momentum of SGD: parameters again, but not the running statistics.
    assert 0.9 < row["memory_optimizer"] / row["memory_parameters"] < 1
    # Backward twice the forward pass, but for the images and padding.
    assert 1.8 < row["macs_per_image"] / row["forward_macs_per_image"] < 3
    assert 0 < row["hbm_bytes_per_image"] < row["compiler_bytes_per_image"]
    (kind,) = row["collectives"]
    sums = row["collectives"][kind]
    # Gradients, some of them as bfloat16, and statistics.
    assert kind == "all-reduce"
    assert 0.4 < sums["bytes"] / row["memory_parameters"] < 1.2
    assert sums["sent"] == pytest.approx(1.5 * sums["bytes"])

    for line in done.stdout[end:].strip().splitlines():
        name, count, hosts, device_kind = line.split(" ", 3)
        place = parse_topology(name)
        assert (int(count), int(hosts)) == (place.devices, place.hosts)
        assert device_kind in place.chip.kinds


def test_a_sweep(monkeypatch, tmp_path, capsys):
    """Costs are made up; 256 examples without groups do not fit."""
    contents = dict.fromkeys(("parameters", "optimizer", "ema", "batch", "teacher"), 0)

    def read_costs(step):
        batch = step.arguments()[1]["label"].shape[0]
        if batch == 256:
            message = "RESOURCE_EXHAUSTED: Used 20.0G of 16.0G hbm."
            raise jax.errors.JaxRuntimeError(message)
        peak = batch * 2**22
        return {
            **{"macs": 1e9, "forward_macs": 10**6, "traffic": 4e8, "arguments": 1e8},
            **{"bytes": 5e8, "unknown_loops": 1},
            "memory": {"peak": peak, **contents, "working": peak},
            "collectives": {"all-reduce": {"count": 3, "bytes": 4e6, "sent": 6e6}},
        }

    monkeypatch.setattr(planning, "tpu_devices", lambda name: jax.devices()[:4])
    monkeypatch.setattr(planning, "read_costs", read_costs)
    chart = tmp_path / "charts" / "sweep.png"
    arguments = [*TINY, "--topology", "v5e:2x2", "--save", str(chart)]
    arguments += ["--sweep", "batch=64,256", "bn_group_size=per_device"]
    plan.main([*arguments, "--format", "json"])
    first, second = json.loads(capsys.readouterr().out)
    assert (first["batch_size"], first["model.bn_group_size"]) == ("64", "per_device")
    assert second["batch_size"] == "256" and "20.0G of 16.0G" in second["problem"]
    assert first["memory_peak"] == 2**28 and first["chips"] == 4
    # 0.4 GB at 819 GB/s, 400 epochs of ImageNet.
    assert first["bound_by"] == "memory"
    hours = 400 * 1_281_167 / 64 * 4e8 / 819e9 / 3600
    assert first["bound_hours"] == pytest.approx(hours, rel=1e-4)
    with Image.open(chart) as image:
        dark = np.asarray(image.convert("L")) < 250
        assert image.width > 1000 and dark.mean() > 0.05

    plan.main(arguments)
    table, err = capsys.readouterr()
    assert "per_device" in table and "20.0G of 16.0G" in err
    assert "--sweep model.formulation=printed,folded,fused" in table


def test_here(digits, monkeypatch, capsys):
    """Compiled, measured and compared on the devices that there are."""
    monkeypatch.setattr(planning, "SECONDS", 0.0)
    monkeypatch.setattr(planning, "STEPS", 2)
    monkeypatch.setattr(machine, "SECONDS", 0.0)
    monkeypatch.setattr(machine, "PRODUCT_SECONDS", 0.0)
    monkeypatch.setattr(machine, "COPIED_ON_CPUS", 2**16)
    monkeypatch.setattr(machine, "REDUCED", 2**12)
    arguments = ["--config", str(CONFIGS / "quickstart.py"), "--topology", "here"]
    arguments += ["--config.model.width=8", "--config.model.stage_sizes=[1,1,1,1]"]
    arguments += [f"--config.data.data_dir={digits}", "--chip", "2", "--measure"]
    plan.main([*arguments, "--format", "json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["chips"], row["hosts"], row["batch"]) == (8, 1, 16)
    assert row["measured_seconds"] > 0
    rate = row["measured_images_per_second"]
    assert rate == pytest.approx(16 / row["measured_seconds"])
    assert 0 < row["bound_memory_seconds"] < row["estimate_seconds"]
    # The gradients: as many numbers as there are parameters, of 4 bytes.
    assert row["collectives"]["all-reduce"]["bytes"] > 0.8 * row["memory_parameters"]
    # 16 epochs of 1,437 digits.
    assert row["steps"] == round(16 * 1437 / 16)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["v5e:2x2", "--chip", "0"], "--chip 0: must be at least 1"),
        (["v5e:2x2", "--sweep", "batch"], "--sweep batch: write KEY=a,b"),
        (["v5e:2x2", "--measure"], "--measure is for --topology here"),
        (["here", "v5e:2x2"], "--topology here: plan TPUs by another command"),
        (["v5e:2x2", "--save", "chart.pdf"], "--save chart.pdf: the name"),
        (["v5e:2x2", "--config.batch_size=66"], "multiple of the 4 dev"),
    ],
)
def test_bad_input(arguments, message, refusal):
    assert message in refusal(plan.main, *TINY, "--topology", *arguments)


@pytest.mark.parametrize(
    "version,name,old",
    [
        ("0.0.42.1", "v6e:2x2", True),
        ("0.0.42", "v5p:2x2x1", False),
        ("0.1", "tpu7x:2x2x1", False),
    ],
)
def test_an_old_compiler(version, name, old, monkeypatch):
    monkeypatch.setattr(tpu_compiler, "libtpu_version", lambda: version)
    warning = tpu_compiler.old_compiler(name)
    assert ("install 0.0.50 or newer" in warning and version in warning) == old


def test_without_a_tpu_compiler(monkeypatch, refusal):
    monkeypatch.setattr(tpu_compiler, "has_tpu_compiler", lambda: False)
    line = refusal(plan.main, *TINY, "--topology", "v5e:2x2")
    assert '--topology needs libtpu: pip install "jax[tpu]"' in line
