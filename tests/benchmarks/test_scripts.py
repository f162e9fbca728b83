"""The comparisons run, and their records hold what they claim; no rate is judged."""

import json
import pathlib
import random
import re

import against
import flax_resnet
import input_references
import jax
import pillow_loader
import pytest
import save_cost

from vt_flax.errors import UserError
from vt_flax.measure import step as measured_step
from vt_flax.paper.macs import count
from vt_flax.plan import machine

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
IMAGENET, QUICKSTART = (str(CONFIGS / f"{n}.py") for n in ("imagenet", "quickstart"))
TINY = ["--config.model.width=8", "--config.model.stage_sizes=[1,1,1,1]"]
SMALL = ["--config.data.image_size=32", "--config.data.eval_resize=36"]


def records_of(script, arguments, capsys):
    script.main([*arguments, "--format", "json"])
    return json.loads(capsys.readouterr().out)


def test_the_commands_of_benchmarks_md():
    """Each is a script here, which has its options."""
    page = (CONFIGS.parent / "BENCHMARKS.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"python tests/benchmarks/(\w+)\.py(.*)", page)
    assert len(commands) >= 5
    for name, arguments in commands:
        text = (HERE / f"{name}.py").read_text()
        assert "startup.run(main)" in text
        for option in re.findall(r"--\w+(?![\w.])", arguments):
            assert option == "--config" or f'"{option}"' in text, (name, option)


@pytest.mark.slow
def test_against_pytorch(torch, monkeypatch, capsys):
    monkeypatch.setattr(measured_step, "SECONDS", 0.001)
    monkeypatch.setattr(machine, "SECONDS", 0.0)
    arguments = ["--config", f"{IMAGENET}:resnet18", *TINY, "--batch", "8"]
    arguments += ["--config.data.image_size=16", "--config.data.augment=none"]
    arguments += ["--config.model.dtype=float32", "--config.model.stem=small"]
    arguments += ["--rounds", "1", "--warmup", "1", "--peak", "measured"]
    arguments += ["--against", "torch_eager,flax_resnet"]
    ours, its, plain = records_of(against, arguments, capsys)
    assert ours["ours over it"] == 1 and ours["what"] == "resnet18"
    assert "ResNet-18, PyTorch" in its["what"] and "eager, CPU" in its["what"]
    assert plain["what"].startswith("ResNet-18, Flax")
    assert all(row["MFU %"] > 0 and row["batch"] == 8 for row in (ours, its, plain))


@pytest.mark.parametrize(
    "config, name, message",
    [
        (f"{IMAGENET}:resnet18", "flax", "did you mean flax_resnet"),
        (f"{CONFIGS / 'cifar10.py'}:cpu,se_resnet18", "torch", "no plain ResNet"),
    ],
)
def test_references_that_are_not_there(config, name, message):
    with pytest.raises(UserError, match=message):
        against.main(["--config", config, "--batch", "8", "--against", name])


@pytest.mark.slow
def test_input_references(prepared_imagenet, capsys):
    arguments = ["--config", IMAGENET, *SMALL, "--seconds", "0.01", "--rounds", "1"]
    arguments += [f"--config.data.data_dir={prepared_imagenet}"]
    arguments.append("--config.data.workers=1")
    records = records_of(input_references, arguments, capsys)
    names = [record["variant"].split(",")[0] for record in records]
    assert names == ["ours", "bare tf.data", "Pillow in processes"]
    assert all(record["images_per_second"] > 0 for record in records)


def test_the_pillow_loader_does_what_it_is_measured_for(real_data):
    """Its crops and operations, without its processes."""
    (file, *_) = sorted((real_data / "imagenet_samples").glob("*/*.JPEG"))
    encoded = file.read_bytes()
    made = [pillow_loader.example(encoded, 48, random.Random(i)) for i in range(20)]
    assert {(image.shape, str(image.dtype)) for image in made} == {
        ((48, 48, 3), "uint8")
    }
    assert len({image.tobytes() for image in made}) == 20
    draw = random.Random(0)
    for _ in range(300):
        left, top, right, lower = pillow_loader.crop(500, 375, draw)
        assert 0 <= left < right <= 500 and 0 <= top < lower <= 375
        area = (right - left) * (lower - top) / (500 * 375)
        assert 0.078 < area <= 1
        assert 0.74 < (right - left) / (lower - top) < 1.35
    assert pillow_loader.crop(1000, 10, draw) == (495, 0, 505, 10)


@pytest.mark.slow
def test_costs_of_the_plain_network(monkeypatch, capsys):
    """As compiled for CPUs in place of TPUs."""
    monkeypatch.setattr(flax_resnet, "tpu_devices", lambda name: jax.devices()[:4])
    arguments = ["--config", f"{IMAGENET}:resnet18", *TINY, *SMALL, "--chip", "2"]
    (row,) = records_of(flax_resnet, [*arguments, "--topology", "v5e:2x2"], capsys)
    # Forward and backward; borders of images cost less, and small things more.
    network = flax_resnet.FlaxResNet([1] * 4, False, 1000, 8)
    macs = count(network, (32, 32)).total_macs
    assert 0.5 < row["GFLOP an image"] * 1e9 / (6 * macs) < 2
    assert row["MB an image, HBM"] > 0 and row["MB an image, compiler's count"] > 0


@pytest.mark.slow
def test_a_save(digits, tmp_path, capsys):
    arguments = ["--config", QUICKSTART, "--saves", "1", "--folder", str(tmp_path)]
    arguments += [*TINY, "--config.model.token_channels=64"]
    arguments += ["--config.model.group_channels=8", f"--config.data.data_dir={digits}"]
    (row,) = records_of(save_cost, arguments, capsys)
    assert row["state MB"] > 0 and 0 < row["blocked s"] <= row["written after s"]
    share = row["blocked s"] / (row["interval steps"] * row["step s"])
    assert row["share"] == pytest.approx(share, rel=0.1, abs=1e-4)
    assert list(tmp_path.iterdir()) == []
