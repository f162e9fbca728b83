"""The benchmarks run, and their records are of what they say; no rate is judged."""

import json
import pathlib
import random

import numpy as np
import pytest
from PIL import Image
from test_bad_input import refusal

from vt_flax import benchmark
from vt_flax.analysis import attention_memory, augmentation_share, pillow_loader
from vt_flax.plan import tpu_compiler
from vt_flax.plan.tpu_compiler import has_tpu_compiler
from vt_flax.training.config import load_config

pytestmark = pytest.mark.slow

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
QUICKSTART, IMAGENET = (str(CONFIGS / f"{n}.py") for n in ("quickstart", "imagenet"))
TINY = [
    "--config.model.width=8",
    "--config.model.token_channels=64",
    "--config.model.group_channels=8",
    "--config.model.stage_sizes=[1,1,1,1]",
    "--config.data.image_size=32",
    "--config.data.eval_resize=36",
]
QUICK = ["--seconds", "0.01", "--rounds", "1"]


def test_input(prepared_imagenet, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    arguments = ["input", "--config", IMAGENET, *TINY, *QUICK, "--format", "json"]
    arguments += [f"--config.data.data_dir={prepared_imagenet}"]
    arguments += ["--compare", "imagenet2012", "--save", str(sheet)]
    benchmark.main(arguments)
    records = json.loads(capsys.readouterr().out)
    names = [record["variant"] for record in records]
    assert names == [
        "ours",
        "bare tf.data, from memory",
        "Pillow in processes, AutoAugment",
        "JPEG decoding alone",
        "ours, imagenet2012 train",
    ]
    assert records[0]["ours_ratio"] == 1
    for record in records:
        ratio = records[0]["images_per_second"] / record["images_per_second"]
        assert record["ours_ratio"] == pytest.approx(ratio, rel=0.05, abs=0.01)

    with Image.open(sheet) as image:
        assert image.width > 1000
        # Four rows of augmented images and two of crops: more than captions on white.
        assert (np.asarray(image.convert("L")) < 250).mean() > 0.4


def test_augmentation(capsys):
    arguments = [
        "augmentation",
        "--config",
        IMAGENET,
        *TINY,
        "--config.model.dtype=float32",
    ]
    benchmark.main([*arguments, "--batch", "8", "--rounds", "2", "--format", "json"])
    (record,) = json.loads(capsys.readouterr().out)
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


@pytest.mark.skipif(
    not has_tpu_compiler(), reason='needs libtpu: pip install "jax[tpu]"'
)
def test_tpu_costs_of_augmentation():
    config = load_config(IMAGENET, [*TINY, "--config.batch_size=32"])
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


def test_without_a_tpu_compiler(monkeypatch, capsys):
    monkeypatch.setattr(tpu_compiler, "has_tpu_compiler", lambda: False)
    for what in (["augmentation", "--config", IMAGENET], ["attention"]):
        arguments = [*what, "--topology", "v5e:2x2"]
        line = refusal(benchmark.main, arguments, monkeypatch, capsys)
        assert 'pip install "jax[tpu]"' in line


def test_attention(monkeypatch, capsys):
    monkeypatch.setattr(attention_memory, "SHAPE", (1, 16, 16, 256))
    monkeypatch.setattr(attention_memory, "BLOCKS", ("Stand-Alone",))
    benchmark.main(["attention", "--format", "json"])
    (record,) = json.loads(capsys.readouterr().out)
    assert record["block"] == "Stand-Alone" and record["MB of a map"] == 0.3
    # 49 copies of 64 channels of keys and of values.
    copies = 2 * 49 * 4 * 16 * 16 * 64 / 1e6
    assert record["unfold"] > copies > record["scan"] > 0
    ratio = record["unfold"] / record["scan"]
    assert record["ratio"] == pytest.approx(ratio, rel=0.05)


def test_attention_takes_no_configuration(monkeypatch, capsys):
    arguments = ["attention", "--config.model.width=8"]
    line = refusal(benchmark.main, arguments, monkeypatch, capsys)
    assert "--config.model.width=8" in line


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["input", "--seconds", "0"], "--seconds 0.0: must be over 0"),
        (["input", "--seconds", "inf"], "--seconds inf: must be finite"),
        (["input", "--seconds", "nan"], "--seconds nan: must be finite"),
        (["profile", "--batch", "8", "--trace", "/proc/x"], "--trace /proc/x: No such"),
        (["input", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["input", "--compare", "digts"], "did you mean digits"),
        (["input", "--save", "/proc/none/sheet.png"], "--save /proc/none/sheet.png"),
        (["input", *QUICK], "no JPEGs among the first 500"),
        (["augmentation", "--batch", "0"], "--batch 0: must be at least 1"),
        (["augmentation", "--config.data.augment=auto"], "did you mean autoaugment"),
        (["rate"], "invalid choice: 'rate'"),
    ],
)
def test_bad_input(arguments, message, digits, monkeypatch, capsys):
    command, *rest = arguments
    data = [f"--config.data.data_dir={digits}"]
    line = refusal(
        benchmark.main,
        [command, "--config", QUICKSTART, *rest, *data],
        monkeypatch,
        capsys,
    )
    assert message in line


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
