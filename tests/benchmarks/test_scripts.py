"""The comparisons run, and their records are of what they say; no rate is judged."""

import json
import pathlib
import random
import re
import types

import against
import augmentation_share
import beside
import flax_resnet
import input_references
import numpy as np
import pillow_loader
import pytest
import save_cost
from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.measure import step as measured_step
from vt_flax.paper.macs import count
from vt_flax.plan.tpu_compiler import has_tpu_compiler
from vt_flax.training.config import load_config, resolve

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
IMAGENET, QUICKSTART = (str(CONFIGS / f"{n}.py") for n in ("imagenet", "quickstart"))
TINY = [
    *("--config.model.width=8", "--config.model.stage_sizes=[1,1,1,1]"),
    *("--config.data.image_size=32", "--config.data.eval_resize=36"),
]
VT = ["--config.model.token_channels=64", "--config.model.group_channels=8"]
MESH = types.SimpleNamespace(
    devices=np.asarray([types.SimpleNamespace(platform="cpu")]), size=1
)
needs_compiler = pytest.mark.skipif(
    not has_tpu_compiler(), reason='needs libtpu: pip install "jax[tpu]"'
)


def records_of(script, arguments, capsys):
    script.main([*arguments, "--format", "json"])
    return json.loads(capsys.readouterr().out)


def config_of(name, **model):
    return resolve(ConfigDict({"model": {"name": name, "num_classes": 10, **model}}))


def test_the_commands_of_benchmarks_md():
    """Each is a script here, which has its options."""
    page = (CONFIGS.parent / "BENCHMARKS.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"python tests/benchmarks/(\w+)\.py(.*)", page)
    assert len(commands) >= 7
    for name, arguments in commands:
        text = (HERE / f"{name}.py").read_text()
        assert "startup.run(main)" in text
        for option in re.findall(r"--\w+(?![\w.])", arguments):
            assert option == "--config" or f'"{option}"' in text, (name, option)


@pytest.mark.slow
def test_against_pytorch(torch, monkeypatch, capsys):
    monkeypatch.setattr(measured_step, "SECONDS", 0.001)
    # More threads of PyTorch would wait for each other, beside other tests.
    monkeypatch.setattr(beside, "cores", lambda: 1)
    arguments = ["--config", f"{IMAGENET}:resnet18", *TINY, "--batch", "8"]
    arguments += ["--config.model.dtype=float32", "--rounds", "2", "--warmup", "1"]
    arguments += ["--against", "torch_eager,flax_resnet", "--peak", "measured"]
    ours, its, plain = records_of(against, arguments, capsys)
    assert ours["ours_ratio"] == 1 and ours["what"] == "resnet18"
    assert "eager, CPU, 1 threads" in its["what"]
    assert plain["what"].startswith("ResNet-18, Flax")
    assert all(row["mfu"] > 0 and row["batch"] == 8 for row in (ours, its, plain))


def test_references_that_are_not_there(monkeypatch):
    there = {"torch"}
    monkeypatch.setattr(
        beside.importlib.util, "find_spec", lambda name: name in there or None
    )
    names = ["flax_resnet", "torch", "timm", "torch"]
    found, notes = against.find_references(names, config_of("vt_resnet18"), MESH)
    assert found == ["flax_resnet", "torch"]
    assert notes == ["timm is left out: timm is not installed: pip install timm"]
    for name, options in (("se_resnet18", {}), ("resnet50", {"variant": "msra"})):
        config = config_of(name, **options)
        found, notes = against.find_references(names[:1], config, MESH)
        assert not found and len(notes) == 1
    assert "variant msra" in notes[0]
    with pytest.raises(UserError, match="did you mean flax_resnet"):
        against.find_references(["flax"], config_of("resnet18"), MESH)


@pytest.mark.parametrize(
    "platform, size, reason",
    [("tpu", 1, "no TPU"), ("gpu", 2, "on one GPU"), ("gpu", 1, ""), ("cpu", 2, "")],
)
def test_pytorch_runs_where_it_can(platform, size, reason):
    devices = np.asarray([types.SimpleNamespace(platform=platform)] * size)
    mesh = types.SimpleNamespace(devices=devices, size=size)
    if not reason:
        against.check_device(mesh)
        return
    with pytest.raises(UserError, match=reason):
        against.check_device(mesh)


@pytest.mark.slow
def test_input_references(prepared_imagenet, capsys):
    arguments = ["--config", IMAGENET, *TINY, "--seconds", "0.01", "--rounds", "1"]
    arguments += [f"--config.data.data_dir={prepared_imagenet}"]
    records = records_of(input_references, arguments, capsys)
    names = [record["variant"] for record in records]
    assert names == [
        "ours",
        "bare tf.data, from memory",
        "Pillow in processes, AutoAugment",
    ]
    assert all(record["images_per_second"] > 0 for record in records)


def test_the_pillow_loader_does_what_it_is_measured_for(real_data):
    """Its crops and operations, without its processes."""
    (file, *_) = sorted((real_data / "imagenet_samples").glob("*/*.JPEG"))
    encoded = file.read_bytes()
    made = [pillow_loader.example(encoded, 48, random.Random(i)) for i in range(60)]
    assert {(image.shape, str(image.dtype)) for image in made} == {
        ((48, 48, 3), "uint8")
    }
    assert len({image.tobytes() for image in made}) == 60
    draw = random.Random(0)
    for _ in range(300):
        left, top, right, lower = pillow_loader.crop(500, 375, draw)
        assert 0 <= left < right <= 500 and 0 <= top < lower <= 375
        area = (right - left) * (lower - top) / (500 * 375)
        assert 0.078 < area <= 1
        assert 0.74 < (right - left) / (lower - top) < 1.35
    assert pillow_loader.crop(1000, 10, draw) == (495, 0, 505, 10)


@pytest.mark.slow
def test_augmentation(capsys):
    arguments = ["--config", IMAGENET, *TINY, *VT, "--config.model.dtype=float32"]
    (record,) = records_of(augmentation_share, [*arguments, "--rounds", "2"], capsys)
    assert record["what"].startswith("seconds a step of 8")
    assert record["with"] > 0 and record["without"] > 0 and record["ratio"] > 0


def test_the_reference_is_the_step_without_augmentation():
    config = load_config(IMAGENET, ["--config.data.mixup=0.2"])
    plain = augmentation_share.without_augmentation(config)
    changed = {
        key
        for key, value in config.data.to_dict().items()
        if value != plain.data.to_dict()[key]
    }
    assert changed == {"augment", "mixup"}
    assert config.data.augment == "autoaugment" and config.data.flip


@needs_compiler
@pytest.mark.slow
def test_tpu_costs_of_augmentation():
    config = load_config(IMAGENET, [*TINY, *VT, "--config.batch_size=32"])
    rows = augmentation_share.compiled_rows(config, "v5e:2x2")
    assert [row["what"].split(",")[0] for row in rows] == [
        "GFLOP an image",
        "MB an image",
        "GB of a device's memory at work",
        "thousand cycles an image outside of kernels",
    ]
    # The kernel is counted: two layers of at most 1,736 operations a pixel.
    assert 3e-3 < rows[0]["with"] - rows[0]["without"] < 5e-3
    assert rows[1]["with"] > rows[1]["without"] > 0
    assert rows[3]["with"] > 0 and rows[3]["without"] > 0


@needs_compiler
@pytest.mark.slow
def test_a_plain_network_for_tpus(capsys):
    arguments = ["--config", f"{IMAGENET}:resnet18", *TINY, "--chip", "2"]
    (row,) = records_of(flax_resnet, [*arguments, "--topology", "v5e:2x2"], capsys)
    # Forward and backward; borders of images cost less, and small things more.
    network = flax_resnet.FlaxResNet([1] * 4, False, 1000, 8)
    macs = count(network, (32, 32)).total_macs
    assert 0.5 < row["GFLOP an image"] * 1e9 / (6 * macs) < 2
    assert 0 < row["MB an image, main memory"] <= row["MB an image, compiler's count"]


@pytest.mark.slow
def test_a_save(digits, tmp_path, capsys):
    arguments = ["--config", QUICKSTART, "--saves", "1", "--folder", str(tmp_path)]
    arguments += ["--config.model.width=8", "--config.model.stage_sizes=[1,1,1,1]"]
    arguments += [*VT, f"--config.data.data_dir={digits}"]
    (row,) = records_of(save_cost, arguments, capsys)
    assert row["state MB"] > 0 and 0 < row["blocked s"] <= row["written after s"]
    share = row["blocked s"] / (row["interval steps"] * row["step s"])
    assert row["share"] == pytest.approx(share, rel=0.1, abs=1e-4)
    assert list(tmp_path.iterdir()) == []
