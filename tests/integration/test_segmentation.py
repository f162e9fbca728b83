"""A segmentation network from a folder of images to pictures of its masks."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vt_flax import evaluate, predict
from vt_flax.data import augment
from vt_flax.data.preparation.build import prepare as build
from vt_flax.errors import UserError
from vt_flax.training import loop
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.logging import read_metrics
from vt_flax.training.run import prepare
from vt_flax.training.step import make_train_step
from vt_flax.training.tasks.segmentation import scores

COLOURS = np.asarray([(220, 40, 40), (40, 220, 40), (40, 40, 220)])
SHAPES = [(20, 28), (28, 20)]


def make_pair(number):
    """An image of three colours in some places, and which class stands where."""
    rng = np.random.default_rng(number)
    shape = SHAPES[number % 2]
    mask = rng.integers(0, 3, (shape[0] // 4, shape[1] // 4)).repeat(4, 0).repeat(4, 1)
    image = COLOURS[mask] + rng.integers(-30, 30, (*shape, 1))
    mask = mask.astype(np.uint8)
    mask[:2] = 255
    return image.astype(np.uint8), mask


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    manual = tmp_path_factory.mktemp("own")
    (manual / "classes.txt").write_text("red\ngreen\nblue\n")
    for number in range(24):
        split = "train" if number < 18 else "test"
        image, mask = make_pair(number)
        for kind, array in (("images", image), ("masks", mask)):
            folder = manual / kind / split
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / f"{number}.png")
    folder = str(tmp_path_factory.mktemp("data"))
    build("image_mask_folder", folder, str(manual))
    return folder


BACKBONE = {
    "stem": "small",
    "stage_sizes": [1, 1, 1, 1],
    "width": 8,
    "fpn_channels": 16,
    "head_channels": 16,
}
FPN = {"name": "fpn_resnet18", **BACKBONE}
VT_FPN = {
    "name": "vt_fpn_resnet18",
    **BACKBONE,
    "token_channels": 32,
    "heads": 4,
    "group_channels": 8,
}


def tiny(data_dir, model=VT_FPN, **changes):
    config = resolve(
        ConfigDict(
            {
                "batch_size": 8,
                "duration": "12 steps",
                "model": dict(model),
                "data": {"name": "image_mask_folder", "data_dir": data_dir},
                "segmentation": {"canvas": [32, 32], "crop": [24, 24]},
                "optimizer": {"name": "adamw", "decay": 0.999, "epsilon": 1e-8},
                "schedule": {"name": "constant", "rate": 0.01, "warmup": "0 steps"},
                "eval": {"every": "12 steps"},
                "checkpoint": {"every": "5 steps", "keep": 5},
                "log": {"every": "2 steps", "tensorboard": False},
            }
        )
    )
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run = prepare(tiny(data_dir))
    return run, workdir, loop.train(run, workdir)


def test_it_learns_and_counts_every_pixel_once(trained, data_dir):
    run, workdir, results = trained
    records = read_metrics(workdir)
    losses = [r["loss"] for r in records if r["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    (recorded,) = [r for r in records if r["kind"] == "eval"]
    assert recorded["raw_miou"] == results["raw"]["miou"]
    assert recorded["raw_iou/green"] == results["raw"]["iou/green"]
    assert run.task.class_names == ("red", "green", "blue")

    # A recount, image by image.
    checkpoints = Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(run.abstract_state(), 12).state
    params, stats = loop.weights_of(jax.device_get(state))["raw"]
    variables = {"params": params, "batch_stats": stats}
    canvas = jax.jit(
        lambda image, size: run.task.predict(
            lambda x: run.model.apply(variables, x, train=False), image, size
        )[0]
    )
    confusion = np.zeros((3, 3), int)
    for number in range(18, 24):
        image, mask = make_pair(number)
        placed = np.zeros((1, 32, 32, 3), np.uint8)
        placed[0, : mask.shape[0], : mask.shape[1]] = image
        found = np.asarray(canvas(placed, np.asarray([mask.shape], np.int32)))[0]
        found = found[: mask.shape[0], : mask.shape[1]]
        known = mask != 255
        np.add.at(confusion, (mask[known], found[known]), 1)
    expected = scores(confusion, run.task.class_names)
    for name, value in expected.items():
        assert results["raw"][name] == pytest.approx(value, abs=1e-9)


def test_a_run_goes_on_as_if_it_had_not_stopped(data_dir, tmp_path):
    states = []
    for name, durations in (("whole", (4,)), ("parts", (3, 4))):
        for steps in durations:
            changes = {"duration": f"{steps} steps", "data.cache": True}
            changes["data.eval_split"] = "test[:1]"
            run = prepare(tiny(data_dir, FPN, **changes))
            loop.train(run, tmp_path / name)
        checkpoints = Checkpoints(tmp_path / name, read_only=True)
        state = checkpoints.restore(run.abstract_state(), 4).state
        states.append(jax.tree.leaves(jax.device_get(state)))
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)


def test_evaluate_prints_classes_and_writes_a_page(trained, tmp_path, capsys):
    _, workdir, results = trained
    page = tmp_path / "page.html"
    evaluate.main(["--workdir", str(workdir), "--page", str(page)])
    printed = capsys.readouterr().out
    assert f"{results['raw']['miou']:.3f}".rstrip("0") in printed
    assert [line.split()[0] for line in printed.splitlines() if " blue " in line]
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3 * 12
    assert "Worst" in text and "example 0: mIoU" in text
    evaluate.main(["--workdir", str(workdir), "--format", "json"])
    rows = {row["weights"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ema"]["examples"] == 6
    assert rows["raw"]["iou/red"] == round(results["raw"]["iou/red"], 3)


def test_predict_draws_masks_at_the_images_own_size(trained, tmp_path, capsys):
    _, workdir, _ = trained
    image = Image.fromarray(make_pair(18)[0])
    large = image.resize((70, 50), Image.Resampling.NEAREST)
    large.save(tmp_path / "large.png")
    turned = Image.Exif()
    turned[274] = 6
    image.save(tmp_path / "turned.jpg", exif=turned)
    (tmp_path / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    words = ["--workdir", str(workdir), "--out", str(out), "--tokens"]
    files = [str(tmp_path / n) for n in ("large.png", "broken.png", "turned.jpg")]
    with pytest.raises(UserError, match="1 of 3 files are no readable images"):
        predict.main([*words, "--format", "json", *files])
    printed = capsys.readouterr()
    assert f"error: {files[1]}: not a readable image" in printed.err
    rows = json.loads(printed.out)
    assert [row["image"] for row in rows] == [files[0], files[2]]
    for row in rows:
        shares = [row[f"share {i}"] or 0 for i in (1, 2, 3)]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
    for name in ("large", "turned", "large_tokens", "turned_tokens"):
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) > 100

    # What is drawn: a mask of the image as a person sees it.
    from vt_flax.analysis.predictor import load

    predictor = load(workdir)
    for name, shape in (("large.png", (50, 70)), ("turned.jpg", (28, 20))):
        found = predictor.predict(predictor.read(tmp_path / name))
        assert found.mask.shape == shape and found.mask.max() <= 2


def test_predict_writes_over_nothing(trained, tmp_path, capsys):
    """Neither over an image, nor over a picture of another one."""
    _, workdir, _ = trained
    image = Image.fromarray(make_pair(18)[0])
    for name in ("x.png", "x_tokens.png"):
        image.save(tmp_path / name)
    before = (tmp_path / "x.png").read_bytes()
    words = ["--workdir", str(workdir), "--tokens", str(tmp_path)]
    with pytest.raises(UserError, match="x.png would be written over an image"):
        predict.main([*words, "--out", str(tmp_path)])
    assert (tmp_path / "x.png").read_bytes() == before
    predict.main([*words, "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_predict_of_a_classifier(digits, tmp_path, capsys):
    config = resolve(
        ConfigDict(
            {
                "batch_size": 16,
                "duration": "1 steps",
                "model": {
                    "name": "resnet18",
                    "stem": "small",
                    "stage_sizes": [1, 1, 1, 1],
                    "width": 4,
                },
                "data": {"data_dir": digits, "image_size": 8, "eval_split": "test[:9]"},
                "log": {"tensorboard": False},
            }
        )
    )
    loop.train(prepare(config), tmp_path / "run")
    Image.new("L", (30, 40), 99).save(tmp_path / "grey.png")
    words = ["--workdir", str(tmp_path / "run"), str(tmp_path / "grey.png")]
    capsys.readouterr()
    predict.main([*words, "--format", "json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["class 1"] in "0123456789"
    assert 1 >= row["share 1"] >= row["share 2"] >= row["share 3"] >= 0
    with pytest.raises(UserError, match="--out FOLDER is missing"):
        predict.main([*words, "--tokens"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.name": "digits"}, "name the feature that holds the masks"),
        ({"model.num_classes": 5}, "has 3 classes, not 5"),
        ({"data.erasing": 0.5}, "data.erasing 0.5: is for classification"),
        ({"model.norm_span": "3"}, "model.norm_span 3 does not divide"),
        ({"segmentation.crop": [0, 8]}, "segmentation.crop"),
    ],
)
def test_bad_input_is_one_line(changes, message, data_dir, digits):
    if "data.name" in changes:
        changes = {**changes, "data.data_dir": digits}
    with pytest.raises(UserError, match=message) as error:
        prepare(tiny(data_dir, **changes))
    assert "\n" not in str(error.value)


def test_parts_of_a_batch_may_be_computed_one_after_the_other(data_dir):
    """As far as shapes go; that it is the same is tested in test_devices.py."""
    run = prepare(tiny(data_dir, accumulation=2, batch_size=16))
    state = run.abstract_state()
    step = make_train_step(
        run.model, run.task, run.optimizer, run.schedule, run.config, run.mesh
    )
    aside = {"bad": np.zeros(16, bool), "request": np.zeros(8, np.int32)}
    after, metrics = jax.eval_shape(step, state, run.task.noise(16) | aside)
    assert metrics["pixel_accuracy"].shape == ()
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (state, after))
    assert shapes[0] == shapes[1]


def test_normalised_images_reach_the_network(trained):
    """What is around an image is 0, as in training."""
    run, _, _ = trained
    seen = []
    image = np.full((1, 32, 32, 3), 255, np.uint8)

    def network(x):
        seen.append(np.array(x))
        return np.zeros((1, 8, 8, 3), np.float32)

    with jax.disable_jit():
        run.task.predict(network, image, np.asarray([[10, 20]], np.int32))
    (inputs,) = seen
    white = np.asarray(augment.normalise(image, run.config.data))[0, 0, 0]
    np.testing.assert_allclose(inputs[0, :10, :20] - white, 0, atol=1e-5)
    inputs[0, :10, :20] = 0
    assert np.abs(inputs).max() < 1e-5
