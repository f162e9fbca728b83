"""Segmentation from end to end, recounted without the package's own arithmetic."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from run_states import assert_same, changed, cut_off, last_state

from vt_flax.cli import evaluate, predict
from vt_flax.data.batches import eval_batches
from vt_flax.data.prepare.build import prepare as build
from vt_flax.errors import UserError
from vt_flax.inference.predictor import load
from vt_flax.training import loop
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.run import prepare
from vt_flax.training.state import weights_of
from vt_flax.training.workdir import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_steps")]

NAMES = ("red", "green", "blue")
COLORS = np.asarray([(210, 50, 50), (50, 210, 50), (50, 50, 210)])
TESTED = range(18, 24)

FPN = {
    "name": "fpn_resnet18",
    "stem": "small",
    "stage_sizes": [1, 1, 1, 1],
    "width": 8,
    "fpn_channels": 16,
    "head_channels": 16,
}
VT = {"token_channels": 32, "heads": 4, "group_channels": 8}
VT_FPN = {**FPN, **VT, "name": "vt_fpn_resnet18"}


def make_pair(number):
    """Two halves of two colors; a corner without a label."""
    rng = np.random.default_rng(number)
    height, width = [(20, 28), (28, 20)][number % 2]
    mask = np.full((height, width), rng.integers(3), np.uint8)
    mask[:, rng.integers(5, width - 5) :] = rng.integers(3)
    image = COLORS[mask] + rng.integers(-20, 21, (height, width, 3))
    mask[:4, :4] = 255
    return image.astype(np.uint8), mask


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return make_data(tmp_path_factory)


def make_data(tmp_path_factory, tested_classes=(0, 1, 2)):
    """Returns a dataset's folder; its test split has labels of some classes alone."""
    manual = tmp_path_factory.mktemp("own")
    (manual / "classes.txt").write_text("\n".join(NAMES))
    for number in range(24):
        image, mask = make_pair(number)
        split = "test" if number in TESTED else "train"
        if split == "test":
            mask[~np.isin(mask, tested_classes)] = 255
        for kind, array in (("images", image), ("masks", mask)):
            folder = manual / kind / split
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / f"{number}.png")
    folder = str(tmp_path_factory.mktemp("data"))
    build("image_mask_folder", folder, str(manual))
    return folder


def tiny(data_dir, model=VT_FPN, **changes):
    config = {
        "batch_size": 8,
        "duration": "10 steps",
        "model": dict(model),
        "data": {"name": "image_mask_folder", "data_dir": data_dir},
        "segmentation": {"canvas": [32, 32], "crop": [24, 24]},
        "optimizer": {"name": "adamw", "decay": 0.999, "epsilon": 1e-8},
        "schedule": {"name": "poly", "learning_rate": 0.01, "warmup": "1 steps"},
        "ema": {"decay": 0.9},
        "eval": {"every": "10 steps"},
        "checkpoint": {"every": "4 steps", "keep": 5},
        "log": {"every": "2 steps", "tensorboard": False},
    }
    return resolve(changed(resolve(ConfigDict(config)), changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run = prepare(tiny(data_dir))
    return run, workdir, loop.train(run, workdir, io.StringIO())


def enlarged(plane, height, width):
    """Pillow's bilinear enlargement: half-pixel centers, edges are repeated."""
    return np.asarray(
        Image.fromarray(plane.astype(np.float32)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
    )


def recount(run, params, stats):
    """Returns the confusion matrix and loss, with NumPy after the network."""
    variables = jax.device_get({"params": params, "batch_stats": stats})
    mean, std = (np.asarray(run.config.data[k]) for k in ("mean", "std"))
    network = jax.jit(lambda v, x: run.model.apply(v, x, train=False))
    pairs, losses = np.zeros((3, 3), np.int64), []
    for number in TESTED:
        image, mask = make_pair(number)
        height, width = mask.shape
        canvas = np.zeros((1, 32, 32, 3), np.float32)
        canvas[0, :height, :width] = (image / 255 - mean) / std
        logits = np.asarray(network(variables, canvas), np.float64)[0]
        wide = np.stack([enlarged(logits[..., c], 32, 32) for c in range(3)], -1)
        wide = wide[:height, :width].astype(np.float64)
        logs = wide - wide.max(-1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
        for y, x in zip(*np.nonzero(mask != 255), strict=True):
            pairs[mask[y, x], wide[y, x].argmax()] += 1
            losses.append(-logs[y, x, mask[y, x]])
    return pairs, np.mean(losses)


def test_results_equal_a_recount_image_by_image(trained):
    run, workdir, results = trained
    state = last_state(run, workdir)
    assert set(results) == {"raw", "ema"}
    for name, (params, stats) in weights_of(state).items():
        pairs, loss = recount(run, params, stats)
        found = results[name]
        ious, accuracies = [], []
        for c in range(3):
            right, union = pairs[c, c], pairs[c].sum() + pairs[:, c].sum() - pairs[c, c]
            expected = 100 * right / union if union else None
            if union:
                ious.append(expected)
            if pairs[c].sum():
                accuracies.append(100 * right / pairs[c].sum())
            assert found[f"iou/{NAMES[c]}"] == pytest.approx(expected)
        assert found["miou"] == pytest.approx(np.mean(ious))
        assert found["miou_labeled"] == pytest.approx(
            np.mean([found[f"iou/{NAMES[c]}"] for c in range(3) if pairs[c].sum()])
        )
        assert found["mean_accuracy"] == pytest.approx(np.mean(accuracies))
        assert found["pixel_accuracy"] == pytest.approx(
            100 * np.trace(pairs) / pairs.sum()
        )
        assert found["loss"] == pytest.approx(loss, rel=1e-3)
        assert found["examples"] == 6 and found["skipped"] == 0


def test_a_run_learns_and_records_what_it_measures(trained):
    run, workdir, results = trained
    records = read_metrics(workdir)
    train = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in train] == [2, 4, 6, 8, 10]
    assert train[-1]["loss"] < 0.8 * train[0]["loss"]
    assert all(0 <= r["pixel_accuracy"] <= 1 for r in train)
    assert train[-1]["pixel_accuracy"] > train[0]["pixel_accuracy"]
    assert train[-1]["epoch"] == pytest.approx(80 / 18)
    (done,) = [r for r in records if r["kind"] == "eval"]
    wanted = {f"{n}_{k}": v for n, r in results.items() for k, v in r.items()}
    assert {k: done[k] for k in wanted} == wanted
    assert {f"{n}_iou/{c}" for n in ("raw", "ema") for c in NAMES} < done.keys()


def test_a_resumed_run_equals_an_uninterrupted_one(
    trained, data_dir, tmp_path, monkeypatch
):
    run, workdir, results = trained
    with cut_off(monkeypatch, 6):
        loop.train(prepare(tiny(data_dir)), tmp_path / "run", io.StringIO())
    assert Checkpoints(tmp_path / "run", read_only=True).steps() == [4]
    # A split cached in memory gives the same examples.
    again = prepare(tiny(data_dir, **{"data.cache": True}))
    assert loop.train(again, tmp_path / "run", io.StringIO()) == results
    assert_same(last_state(run, workdir), last_state(run, tmp_path / "run"))


def test_evaluate_prints_tables_and_json_and_writes_a_page(trained, tmp_path, capsys):
    _, workdir, results = trained
    page = tmp_path / "page.html"
    evaluate.main(["--workdir", str(workdir), "--page", str(page)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name in NAMES:
        (row,) = [line for line in lines if line[:1] == [name]]
        for word, kind in zip(row[1:], ("raw", "ema"), strict=True):
            value = results[kind][f"iou/{name}"]
            assert word == ("-" if value is None else str(round(value, 3)))
    # Both sections have all six images, in opposite orders.
    best, worst = page.read_text().split("<h2>")[1:]
    orders = []
    for section in (best, worst):
        rows = section.split("<h3>example ")[1:]
        assert sorted(int(row.split(":")[0]) for row in rows) == list(range(6))
        assert all(row.count(";base64,") == 3 for row in rows)
        orders.append([float(row.split("mIoU ")[1].split(" %")[0]) for row in rows])
    assert orders[0] == sorted(orders[0], reverse=True) == orders[1][::-1]
    evaluate.main(["--workdir", str(workdir), "--format", "json"])
    rows = {r.pop("weights"): r for r in json.loads(capsys.readouterr().out)}
    for kind, result in results.items():
        assert rows[kind].keys() == result.keys()
        assert rows[kind]["miou"] == round(result["miou"], 3)
        assert rows[kind]["loss"] == round(result["loss"], 5)


def test_a_split_with_one_labeled_class_has_no_miou(
    trained, tmp_path_factory, tmp_path
):
    run, workdir, _ = trained
    folder = make_data(tmp_path_factory, (2,))
    # The same programs on the other split.
    run = dataclasses.replace(run, eval_source=prepare(tiny(folder)).eval_source)

    # What was trained is evaluated again, as after a stop.
    again, stream = tmp_path / "run", io.StringIO()
    shutil.copytree(workdir, again, ignore=shutil.ignore_patterns("metrics*", "best"))
    results = loop.train(run, again, stream)
    assert "raw mIoU - (1 of 3 classes labeled) pixel accuracy" in stream.getvalue()
    (record,) = read_metrics(again)
    assert record["ema_miou"] is results["ema"]["miou"] is None
    assert record["ema_labeled_classes"] == 1 and 0 <= record["ema_iou/blue"] <= 100
    assert not list((again / "best").iterdir())


def test_predict_at_the_size_of_each_image(trained, tmp_path, capsys):
    _, workdir, _ = trained
    # Red above, blue below, as a person sees it; stored lying, to be turned clockwise.
    upright = np.zeros((30, 18, 3), np.uint8)
    upright[:15], upright[15:] = COLORS[0], COLORS[2]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, large = tmp_path / "turned.png", tmp_path / "large.png"
    Image.fromarray(np.rot90(upright)).save(turned, exif=exif)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    Image.fromarray(make_pair(18)[0]).resize((90, 61)).save(large)
    words = ["--workdir", str(workdir), "--out", str(tmp_path / "out")]
    predict.main([*words, "--format", "json", str(turned), str(large)])
    rows = json.loads(capsys.readouterr().out)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"index.html", "turned.png", "large.png"}
    predictor = load(workdir)
    masks = [predictor.predict(file)[0].mask for file in (turned, large)]
    assert [mask.shape for mask in masks] == [(30, 18), (61, 90)]
    same = predictor.predict(tmp_path / "upright.png")[0].mask
    np.testing.assert_array_equal(masks[0], same)
    for row, mask in zip(rows, masks, strict=True):
        areas = np.bincount(mask.ravel(), minlength=3) / mask.size
        found = {row[f"class {i}"]: row[f"area {i}"] for i in (1, 2, 3)}
        found.pop(None, None)
        pairs = zip(NAMES, areas, strict=True)
        assert found == {name: round(area, 4) for name, area in pairs if area}
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_dataset_without_masks_is_rejected(data_dir, digits):
    changes = {"data.name": "digits", "data.data_dir": digits}
    with pytest.raises(UserError, match="digits.*masks"):
        prepare(tiny(data_dir, **changes))


def test_a_split_larger_than_its_canvas_is_rejected_before_training(data_dir):
    config = tiny(data_dir, FPN, **{"segmentation.eval_canvas": [24, 24]})
    with pytest.raises(UserError, match="more than the 24 x 24 of .*eval_canvas"):
        prepare(config)
    # With `skip` they are counted instead.
    config.data.on_error = "skip"
    run = prepare(config)
    (batch,) = eval_batches(
        run.eval_source,
        run.config.data,
        batch=8,
        decoder=run.task.decoder(run.eval_source, train=False),
    )
    assert batch["bad"].sum() == 6
