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
from vt_flax.data import augment
from vt_flax.data.batches import eval_batches
from vt_flax.data.prepare.build import prepare as build
from vt_flax.errors import UserError
from vt_flax.inference.predictor import load
from vt_flax.parallel.mesh import make_mesh, replicated, to_global
from vt_flax.training import loop
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.run import prepare
from vt_flax.training.state import weights_of
from vt_flax.training.step import compile_eval_step, make_train_step
from vt_flax.training.workdir import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_steps")]

NAMES = ("red", "green", "blue")
COLOURS = np.asarray([(210, 50, 50), (50, 210, 50), (50, 50, 210)])
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
    """Two halves of two colours; a corner without a label."""
    rng = np.random.default_rng(number)
    height, width = [(20, 28), (28, 20)][number % 2]
    mask = np.full((height, width), rng.integers(3), np.uint8)
    mask[:, rng.integers(5, width - 5) :] = rng.integers(3)
    image = COLOURS[mask] + rng.integers(-20, 21, (height, width, 3))
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
    """Pillow's bilinear enlargement: half-pixel centres, edges go on."""
    return np.asarray(
        Image.fromarray(plane.astype(np.float32)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
    )


def recount(run, params, stats, cells):
    """Everything after the network in NumPy, in Python's own loops."""
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
        assert logits.shape == (cells, cells, 3)
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
        pairs, loss = recount(run, params, stats, 32)
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


def test_what_is_on_record(trained):
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
    # What is read back for a run that is finished already is the same.
    said = io.StringIO()
    assert loop.train(run, workdir, said) == results
    assert "nothing left to do" in said.getvalue()


def test_a_cut_off_run_equals_an_uninterrupted_one(
    trained, data_dir, tmp_path, monkeypatch
):
    run, workdir, results = trained
    with cut_off(monkeypatch, 6):
        loop.train(prepare(tiny(data_dir)), tmp_path / "run", io.StringIO())
    assert Checkpoints(tmp_path / "run", read_only=True).steps() == [4]
    # And the split in memory gives the same examples.
    again = prepare(tiny(data_dir, **{"data.cache": True}))
    assert loop.train(again, tmp_path / "run", io.StringIO()) == results
    assert_same(last_state(run, workdir), last_state(run, tmp_path / "run"))


def test_one_device_counts_as_eight_do(trained):
    run, workdir, results = trained
    params, stats = weights_of(last_state(run, workdir))["ema"]
    variables = jax.device_get((params, stats))
    found = {}
    for count in (1, 8):
        mesh = make_mesh(jax.devices()[:count])
        step = compile_eval_step(run.model, run.task, mesh)
        weights = jax.device_put(variables, replicated(mesh))
        (batch,) = eval_batches(
            run.eval_source,
            run.config.data,
            batch=8,
            decoder=run.task.decoder(run.eval_source, train=False),
        )
        batch = to_global(batch | {"request": np.zeros(count, np.int32)}, mesh)
        found[count] = jax.device_get(step(*weights, batch))
    one, eight = found[1], found[8]
    np.testing.assert_array_equal(one["confusion"], eight["confusion"])
    assert one["examples"] == eight["examples"] == 6
    labeled = sum((make_pair(n)[1] != 255).sum() for n in TESTED)
    assert one["confusion"].sum() == labeled
    np.testing.assert_allclose(one["loss"], eight["loss"], rtol=1e-5)
    assert eight["loss"] / labeled == pytest.approx(results["ema"]["loss"], rel=1e-4)


def test_evaluate_prints_two_tables_json_and_a_page(trained, tmp_path, capsys):
    _, workdir, results = trained
    page = tmp_path / "page.html"
    evaluate.main(["--workdir", str(workdir), "--page", str(page)])
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines() if line.split()]
    assert ["class", "raw", "iou", "ema", "iou"] in lines
    for name in NAMES:
        (row,) = [line for line in lines if line[0] == name]
        for word, kind in zip(row[1:], ("raw", "ema"), strict=True):
            value = results[kind][f"iou/{name}"]
            assert word == ("-" if value is None else str(round(value, 3)))
    (raw,) = [line for line in lines if line[0] == "raw" and "6" in line]
    assert str(round(results["raw"]["miou"], 3)) in raw
    assert str(page) in printed.err
    text = page.read_text()
    assert text.index("<h2>Best</h2>") < text.index("<h2>Worst</h2>")
    parts = text.split("<h2>")[1:]
    orders = []
    for part in parts:
        rows = part.split("<h3>example ")[1:]
        assert all(row.count(";base64,") == 3 for row in rows)
        values = [float(row.split("mIoU ")[1].split(" %")[0]) for row in rows]
        numbers = [int(row.split(":")[0]) for row in rows]
        assert sorted(numbers) == list(range(6))
        orders.append(values)
    assert orders[0] == sorted(orders[0], reverse=True)
    assert orders[1] == sorted(orders[1])
    evaluate.main(["--workdir", str(workdir), "--format", "json"])
    rows = {r.pop("weights"): r for r in json.loads(capsys.readouterr().out)}
    for kind, result in results.items():
        assert rows[kind].keys() == result.keys()
        assert rows[kind]["miou"] == round(result["miou"], 3)
        assert rows[kind]["loss"] == round(result["loss"], 5)


def test_a_split_with_one_labeled_class_has_no_miou(
    trained, tmp_path_factory, tmp_path, monkeypatch, capsys
):
    """It is noted before the first step, in training's evaluation and by `evaluate`."""
    run, workdir, _ = trained
    folder = make_data(tmp_path_factory, (2,))
    # The same programs on the other split.
    run = dataclasses.replace(run, eval_source=prepare(tiny(folder)).eval_source)
    absent = "2 of 3 classes (red, green)"

    # What was trained is evaluated again, as after a stop.
    again = tmp_path / "run"
    shutil.copytree(workdir, again, ignore=shutil.ignore_patterns("metrics*", "best"))
    said = io.StringIO()
    results = loop.train(run, again, said)
    note = (
        f"note: image_mask_folder test: no pixel of {absent}: mIoU needs two, and is "
        "left out"
    )
    assert said.getvalue().splitlines().count(note) == 1
    assert "raw mIoU - (1 of 3 classes labeled) pixel accuracy" in said.getvalue()
    (record,) = read_metrics(again)
    assert record["ema_miou"] is results["ema"]["miou"] is None
    assert record["ema_labeled_classes"] == 1 and 0 <= record["ema_iou/blue"] <= 100
    assert (workdir / "best" / "10").is_dir()
    assert not list((again / "best").iterdir())

    monkeypatch.setattr(evaluate, "prepare", lambda config: run)
    monkeypatch.setattr(evaluate, "compile_eval_step", loop.compile_eval_step)
    evaluate.main(["--workdir", str(workdir), "--format", "json"])
    printed = capsys.readouterr()
    for row in json.loads(printed.out):
        assert row["miou"] is row["miou_labeled"] is row["mean_accuracy"] is None
        assert row["labeled_classes"] == 1
    assert note in printed.err.splitlines()


def test_pages_and_pictures_of_the_wrong_kind_are_one_line(trained, tmp_path):
    _, workdir, _ = trained
    words = ["--workdir", str(workdir)]
    for more, match in (
        (["--token_picture", str(tmp_path / "x.png")], "predict --tokens"),
        (["--page", str(workdir / "config.json" / "x.html")], "--page .*: "),
    ):
        with pytest.raises(UserError, match=match) as error:
            evaluate.main([*words, *more])
        assert "\n" not in str(error.value)


def test_predict_at_the_images_own_size(trained, tmp_path, capsys):
    run, workdir, _ = trained
    # Red above, blue below, as a person sees it; stored lying, to be turned clockwise.
    upright = np.zeros((30, 18, 3), np.uint8)
    upright[:15], upright[15:] = COLOURS[0], COLOURS[2]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(
        tmp_path / "turned.jpg", exif=exif, quality=95
    )
    Image.fromarray(upright).save(tmp_path / "upright.png")
    large = Image.fromarray(make_pair(18)[0]).resize((90, 61))
    large.save(tmp_path / "large.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    names = ["turned.jpg", "broken.jpg", "large.png", "gone.png"]
    out = tmp_path / "new" / "out"
    with pytest.raises(UserError, match="^2 of 4 files are no readable images$"):
        predict.main(
            [
                *("--workdir", str(workdir), "--out", str(out), "--tokens"),
                *("--format", "json", *(str(tmp_path / n) for n in names)),
            ]
        )
    printed = capsys.readouterr()
    errors = printed.err.splitlines()
    told = [str(tmp_path / name) for name in names[1::2]]
    assert errors[-1] == f"wrote {out}/index.html"
    assert [line.split(": ")[1] for line in errors[:-1]] == told
    rows = json.loads(printed.out)
    assert [r["image"] for r in rows] == [str(tmp_path / n) for n in names[::2]]
    written = {p.name for p in out.iterdir()}
    assert written == {"index.html"} | {
        f"{n}{t}.png" for n in ("turned", "large") for t in ("", "_tokens")
    }
    for file in out.glob("*.png"):
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("RGB")).std() > 5
    predictor = load(workdir)
    found = {}
    for name, shape in (("turned.jpg", (30, 18)), ("large.png", (61, 90))):
        found[name] = predictor.predict(tmp_path / name)[0].mask
        assert found[name].shape == shape and found[name].max() < 3
    same = predictor.predict(tmp_path / "upright.png")[0].mask
    # JPEG moves some pixels at the border of the colours.
    assert (found["turned.jpg"] == same).mean() > 0.9
    for row, name in zip(rows, names[::2], strict=True):
        shares = np.bincount(found[name].ravel(), minlength=3) / found[name].size
        told = {row[f"class {i}"]: row[f"area {i}"] for i in (1, 2, 3)}
        told.pop(None, None)
        assert told == {n: round(s, 4) for n, s in zip(NAMES, shares, strict=True) if s}
        assert list(told.values()) == sorted(told.values(), reverse=True)


def test_predict_needs_no_dataset_and_takes_folders(trained, tmp_path, capsys):
    _, workdir, _ = trained
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    content = json.loads((copy / "config.json").read_text())
    content["config"]["data"]["data_dir"] = "/nowhere"
    (copy / "config.json").write_text(json.dumps(content))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(make_pair(19)[0]).save(tmp_path / folder / "same.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    words = ["--workdir", str(copy), "--out", str(tmp_path / "out")]
    predict.main([*words, str(tmp_path / "a"), str(tmp_path / "b")])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("same.png", "same_2.png", "index.html")
    }
    assert "ema weights" in capsys.readouterr().out
    for more, match in (
        ([*words, str(tmp_path / "none.png")], "1 of 1 files"),
        ([*words[:2], str(tmp_path / "a")], "--out FOLDER is missing"),
        ([*words, "--step", "3", str(tmp_path / "a")], "no checkpoint of step 3"),
        (["--workdir", str(tmp_path), str(tmp_path / "a")], "holds no run"),
        ([*words[:3], str(copy / "config.json"), str(tmp_path / "a")], "--out"),
    ):
        with pytest.raises(UserError, match=match) as error:
            predict.main(more)
        assert "\n" not in str(error.value)


def test_predict_of_a_classifier(digits, tmp_path, capsys):
    config = {
        "batch_size": 16,
        "duration": "2 steps",
        "model": {
            "name": "resnet18",
            "stem": "small",
            "stage_sizes": [1] * 4,
            "width": 4,
        },
        "data": {"data_dir": digits, "image_size": 8, "eval_split": "test[:9]"},
        "log": {"tensorboard": False},
    }
    loop.train(prepare(resolve(ConfigDict(config))), tmp_path / "run", io.StringIO())
    Image.new("L", (30, 40), 99).save(tmp_path / "grey.png")
    Image.new("RGBA", (9, 8), (1, 2, 3, 4)).save(tmp_path / "colour.png")
    words = ["--workdir", str(tmp_path / "run")]
    files = [str(tmp_path / n) for n in ("grey.png", "colour.png")]
    predict.main([*words, "--format", "json", *files])
    rows = json.loads(capsys.readouterr().out)
    assert [r["image"] for r in rows] == files
    for row in rows:
        classes = [row[f"class {i}"] for i in (1, 2, 3)]
        shares = [row[f"probability {i}"] for i in (1, 2, 3)]
        assert len(set(classes)) == 3 and set(classes) <= set("0123456789")
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    predict.main([*words, files[0]])
    assert rows[0]["class 1"] in capsys.readouterr().out
    with pytest.raises(UserError, match="does not segment"):
        evaluate.main([*words, "--page", str(tmp_path / "x.html")])
    # A plain ResNet has no tokens.
    with pytest.raises(UserError, match="--tokens: this network has no token"):
        predict.main([*words, "--out", str(tmp_path / "out"), "--tokens", files[0]])


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"data.augment": "randaugment"}, "data.augment 'randaugment': is for classif"),
        ({"data.mixup": 0.2}, "data.mixup 0.2: is for classification"),
        ({"data.name": "digits"}, "digits.*masks"),
        ({"data.name": "folder:/tmp"}, "class folders have no masks"),
        ({"data.name": "mnist_"}, "mnist_"),
        ({"data.eval_split": "validation"}, "Unknown split 'validation'"),
        ({"data.eval_split": "test[:0]"}, "empty"),
        ({"model.num_classes": 4}, "has 3 classes, with model.num_classes 4"),
        ({"model.num_classes": -1}, "num_classes"),
        ({"model.bn_group_size": 3}, "bn_group_size 3: does not divide"),
        ({"model.bn_group_size": -1}, "bn_group_size=-1"),
        ({"batch_size": 12}, "batch_size"),
        ({"grad_accum_steps": 3}, "8 devices times config.grad_accum_steps 3"),
        ({"segmentation.canvas": [32]}, "segmentation.canvas"),
        (
            {"segmentation.scale_max": 0.1},
            "scale_min 0.5: must be at most",
        ),
        ({"segmentation.eval_scales": []}, "segmentation.eval_scales"),
        ({"segmentation.label_map": [0, 1, 300]}, "label_map"),
        ({"segmentation.mask_feature": "image"}, "'image' must name one of its masks"),
        ({"schedule.power": 0.0}, "schedule.power"),
    ],
)
def test_bad_input_is_one_line(changes, match, data_dir, digits):
    if changes.get("data.name") == "digits":
        changes = {**changes, "data.data_dir": digits}
    with pytest.raises(UserError, match=match) as error:
        prepare(tiny(data_dir, **changes))
    assert "\n" not in str(error.value)


def test_a_split_larger_than_its_canvas_is_refused_before_training(data_dir):
    config = tiny(data_dir, FPN, **{"segmentation.eval_canvas": [24, 24]})
    with pytest.raises(UserError, match="more than the 24 x 24 of .*eval_canvas"):
        prepare(config)
    # Who leaves out what cannot be evaluated is told how many those were.
    config.data.on_error = "skip"
    run = prepare(config)
    (batch,) = eval_batches(
        run.eval_source,
        run.config.data,
        batch=8,
        decoder=run.task.decoder(run.eval_source, train=False),
    )
    assert batch["bad"].sum() == 6


def test_coarse_logits_are_recounted_too(data_dir):
    """A network whose maps are a quarter of its input's size."""
    run = prepare(tiny(data_dir, FPN, **{"model.stem": "imagenet"}))
    state = run.initial_state()
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype),
        jax.device_get(state.params),
    )
    stats = jax.device_get(state.batch_stats)
    (batch,) = eval_batches(
        run.eval_source,
        run.config.data,
        batch=6,
        decoder=run.task.decoder(run.eval_source, train=False),
    )
    step = compile_eval_step(run.model, run.task, run.mesh)
    counts = step(params, stats, batch | {"request": np.zeros(1, np.int32)})
    pairs, loss = recount(run, params, stats, 8)
    assert (pairs.sum(0) > 0).sum() > 1
    np.testing.assert_array_equal(counts["confusion"], pairs)
    assert counts["loss"] / pairs.sum() == pytest.approx(loss, rel=1e-4)


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
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_parts_of_a_batch_may_be_computed_one_after_the_other(data_dir):
    """As far as shapes go; that it is the same is tested in test_devices.py."""
    run = prepare(tiny(data_dir, grad_accum_steps=2, batch_size=16))
    state = run.abstract_state()
    step = make_train_step(
        run.model, run.task, run.optimizer, run.schedule, run.config, run.mesh
    )
    aside = {"bad": np.zeros(16, bool), "request": np.zeros(8, np.int32)}
    after, metrics = jax.eval_shape(step, state, run.task.noise(16) | aside)
    assert metrics["pixel_accuracy"].shape == ()
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (state, after))
    assert shapes[0] == shapes[1]


def test_normalized_images_reach_the_network(trained):
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
    white = np.asarray(augment.normalize(image, run.config.data))[0, 0, 0]
    np.testing.assert_allclose(inputs[0, :10, :20] - white, 0, atol=1e-5)
    inputs[0, :10, :20] = 0
    assert np.abs(inputs).max() < 1e-5
