"""`evaluate --tokens` from end to end, recounted image by image in NumPy."""

import contextlib
import dataclasses
import functools
import io
import json
import sys

import jax
import numpy as np
import pytest
import token_reference as reference
from ml_collections import ConfigDict
from pair_trees import draw_image, draw_labels, write
from PIL import Image

from vt_flax.cli import evaluate, startup
from vt_flax.data.augment.scaled import eval_inputs
from vt_flax.data.batches import eval_batches
from vt_flax.data.prepare.build import prepare as build
from vt_flax.inference import token_statistics
from vt_flax.parallel.mesh import make_mesh
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import resolve
from vt_flax.training.run import prepare
from vt_flax.training.workdir import RunRecord

pytestmark = pytest.mark.slow

SMALL = {
    "stem": "small",
    "stage_sizes": [1, 1, 1, 1],
    "width": 8,
    "token_channels": 32,
    "heads": 4,
    "group_channels": 8,
}
NAMES = ("background", "green", "blue")
# Of 11 images on 8 devices, the second batch holds 3.
TESTED = range(4, 15)


def save(run, workdir):
    """Saves a network whose tokens look at few pixels; the raw weights' at others."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        value = np.zeros(leaf.shape, leaf.dtype)
        if name.endswith("['kernel']") and "params" in name:
            value += rng.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
            sharp = "['filter']" in name or "['query']" in name
            value *= 6 if sharp else 1
        elif name.endswith(("['scale']", "['var']")):
            value += 1
        elif name == ".step":
            value += 5
        return jax.device_put(value, leaf.sharding)

    workdir.mkdir()
    state = jax.tree_util.tree_map_with_path(fill, run.abstract_state())
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save(5, state)
    checkpoints.close()
    RunRecord.of(run.config, run.train_source).write(workdir)
    return {"params": state.ema_params, "batch_stats": state.ema_batch_stats}


def configured(model, data, segmentation=None):
    return resolve(
        ConfigDict(
            {
                "batch_size": 8,
                "duration": "10 steps",
                "model": {**SMALL, **model},
                "data": {"workers": 1, **data},
                "segmentation": segmentation or {},
                "ema": {"decay": 0.9},
                "schedule": {"warmup": "1 steps"},
            }
        )
    )


@pytest.fixture(scope="module")
def classifier(digits, tmp_path_factory):
    config = configured(
        {"name": "vt_resnet18", "stage_sizes": [1, 1, 1, 2], "tokens": 4},
        {
            "name": "digits",
            "data_dir": digits,
            "image_size": 16,
            "eval_split": "test[:21]",
        },
    )
    run, workdir = prepare(config), tmp_path_factory.mktemp("classifier") / "run"
    return run, workdir, save(run, workdir)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    manual = tmp_path_factory.mktemp("own")
    (manual / "classes.txt").write_text("\n".join(NAMES))
    for number in (0, 1, *TESTED):
        split = "test" if number in TESTED else "train"
        width, height = [(20, 14), (14, 20), (28, 9)][number % 3]
        name = f"{split}/{number}.png"
        write(manual / "images" / name, draw_image(number, width, height))
        labels = draw_labels(number, width, height, (0, 1, 2, 255))
        write(manual / "masks" / name, labels)
    folder = str(tmp_path_factory.mktemp("data"))
    build("image_mask_folder", folder, str(manual))
    config = configured(
        {
            "name": "vt_fpn_resnet18",
            "tokens": 2,
            "fpn_channels": 16,
            "head_channels": 8,
        },
        {"name": "image_mask_folder", "data_dir": folder},
        {
            "canvas": [28, 28],
            "crop": [16, 16],
            "short_side": 16,
            "eval_size": [32, 24],
        },
    )
    run, workdir = prepare(config), tmp_path_factory.mktemp("segmenter") / "run"
    return run, workdir, save(run, workdir)


def sown(run, variables, images):
    """What the tokenizers sow, (images, heads, L, h, w) by module, in order."""
    mean, std = (np.asarray(run.config.data[key]) for key in ("mean", "std"))
    inputs = ((np.asarray(images) / 255 - mean) / std).astype(np.float32)

    @jax.jit
    def apply(variables, inputs):
        return run.model.apply(
            variables, inputs, train=False, mutable=["intermediates"]
        )[1]["intermediates"]

    found = apply(jax.device_get(variables), inputs)
    (place,) = found.values()
    maps = {}
    for name, module in place.items():
        module = module.get("tokenizer", module)
        # Transformer and projectors sow what is theirs.
        if "coefficients" not in module:
            continue
        maps_of, name = np.asarray(module["coefficients"][0]), name.split("_")[0]
        maps[name] = maps_of if maps_of.ndim == 5 else maps_of[:, None]
        np.testing.assert_allclose(maps[name].sum((-2, -1)), 1, rtol=1e-5)
    return maps


def whole_split(run):
    """All examples in one batch, and nothing else."""
    (batch,) = eval_batches(
        run.eval_source,
        run.config.data,
        batch=len(run.eval_source),
        decoder=run.task.decoder(run.eval_source, train=False),
    )
    assert batch["mask"].all()
    return batch


def near(found, expected, index):
    mean, std = (values[index] for values in expected)
    assert found["mean"] == pytest.approx(mean, rel=1e-3, abs=1e-5)
    assert found["std"] == pytest.approx(std, rel=1e-3, abs=1e-5)


def check_modules(report, expected, tokens):
    for module in report["modules"]:
        name = module["module"]
        numbers = [token["token"] for token in module["tokens"]]
        assert numbers == list(range(tokens - len(numbers), tokens))
        for row, token in enumerate(module["tokens"]):
            for key in ("relative_entropy", "overlap"):
                near(token[key], expected[f"{name}/{key}"], row)
            assert len(token.get("head_entropy", [None])) == module["heads"]
            for head, found in enumerate(token.get("head_entropy", [])):
                near(found, expected[f"{name}/head_entropy"], (head, row))


def check_picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


@pytest.fixture(scope="module")
def classified(classifier, tmp_path_factory):
    """What is told of a classifier, and where it is written."""
    _, workdir, _ = classifier
    folder = tmp_path_factory.mktemp("report") / "new"
    with contextlib.redirect_stdout(io.StringIO()) as told:
        evaluate.main(["--workdir", str(workdir), "--tokens", str(folder)])
    return told.getvalue(), folder, json.loads((folder / "tokens.json").read_text())


def test_a_classifiers_report_equals_a_recount(classifier, classified):
    run, _, variables = classifier
    told, folder, report = classified
    check_picture(folder / "tokens.png")
    assert report["examples"] == 21 and report["weights"] == "ema"
    assert "area" not in report

    maps = sown(run, variables, whole_split(run)["image"])
    rows = [
        reference.statistics({k: v[i] for k, v in maps.items()}, (16, 16), (16, 16))
        for i in range(21)
    ]
    expected = reference.all_examples(rows)
    assert [m["heads"] for m in report["modules"]] == [1, 4]
    check_modules(report, expected, 4)

    lines = told.splitlines()
    assert "21 examples" in lines[0] and "digits" in lines[0]
    shares = 100 * expected["module2/relative_entropy"][0]
    (line,) = (x for x in lines if x.split()[:5] == ["module2", *"4x4", "3"])
    assert f"{shares[1]:.1f}" in line.split()
    assert "has no masks" in told


def test_one_device_and_eight_report_the_same(classifier, classified):
    run, _, variables = classifier
    *_, eight = classified
    assert run.mesh.size == 8
    weights = jax.device_get((variables["params"], variables["batch_stats"]))
    alone = dataclasses.replace(run, mesh=make_mesh(jax.devices()[:1]))
    shapes = token_statistics.find_modules(run.config, 10)
    one = token_statistics.measure(alone, weights, shapes)
    assert one.keys() < eight.keys()
    found, expected = (
        jax.tree.leaves_with_path({key: report[key] for key in one})
        for report in (one, eight)
    )
    assert len(found) == len(expected) > 50
    for (path, a), (other, b) in zip(found, expected, strict=True):
        assert path == other
        same = pytest.approx(b, rel=1e-3, abs=1e-5) if isinstance(b, float) else b
        assert a == same, jax.tree_util.keystr(path)


def test_a_segmenters_report_equals_a_recount(segmenter, capsys):
    run, workdir, variables = segmenter
    evaluate.main(["--workdir", str(workdir), "--tokens", "--format", "json"])
    report = json.loads(capsys.readouterr().out)
    stored = json.loads((workdir / "tokens" / "tokens.json").read_text())
    assert stored == report
    check_picture(workdir / "tokens" / "tokens.png")
    assert report["examples"] == 11

    batch = whole_split(run)
    view = jax.jit(functools.partial(eval_inputs, config=run.config))
    inputs = view(batch["image"], batch["size"]).images
    maps = sown(run, variables, inputs)
    rows = []
    for i, (height, width) in enumerate(batch["size"].tolist()):
        # A short side of 16, unless that does not fit 32 x 24.
        factor = min(16 / min(height, width), 32 / height, 24 / width)
        length = [round(side * factor) for side in (height, width)]
        mine = {name: of_heads[i] for name, of_heads in maps.items()}
        label = batch["label"][i, :height, :width]
        figures = reference.statistics(mine, length, (32, 24))
        shares = reference.class_statistics(
            {k: v[0] for k, v in mine.items()}, label, length, (32, 24), 3, [0]
        )
        rows.append(figures | shares)
    expected = reference.all_examples(rows)
    check_modules(report, expected, 2)

    *area, unlabeled = expected["area"][0]
    assert report["foreground"]["classes"] == ["green", "blue"]
    near(report["foreground"]["area"], expected["foreground_area"], ())
    assert list(report["area"].values()) == pytest.approx(area, rel=1e-4)
    assert report["unlabeled_area"] == pytest.approx(unlabeled, rel=1e-4)
    rows = token_statistics.table_rows(report)
    for module in report["modules"]:
        found = expected[f"{module['module']}/classes"][0]
        for row, token in enumerate(module["tokens"]):
            near(token["foreground"], expected[f"{module['module']}/foreground"], row)
            assert list(token["classes"]) == list(NAMES)
            shares = [*token["classes"].values(), token["unlabeled"]]
            assert shares == pytest.approx(found[row], rel=1e-3)
            times = found[row, :-1] / area
            line = rows.pop(0)
            assert line["module"] == module["module"]
            assert line["favors"] == NAMES[times.argmax()]
            assert line["times its area"] == pytest.approx(times.max(), abs=6e-3)


def refusal(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    with pytest.raises(SystemExit) as stop:
        startup.run(evaluate.main)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    "model",
    [
        {"name": "resnet18"},
        {"name": "fpn_resnet18"},
        # Tokens without coefficients.
        {
            **{"name": "vt_resnet18", "first_tokenizer": "pooling"},
            **{"tokenizer": "pooling", "position_encoding": False},
        },
    ],
    ids=lambda model: model["name"],
)
@pytest.mark.parametrize(
    "option, more", [("--tokens", []), ("--token_picture", ["tokens.png"])]
)
def test_a_network_without_tokens_is_refused_before_its_data(
    option, more, model, tmp_path, monkeypatch, capsys
):
    keep = ("stem", "stage_sizes", "width")
    keep = (*keep, "token_channels", "heads") if "vt_" in model["name"] else keep
    values = {"model": {**model, **{key: SMALL[key] for key in keep}}}
    nowhere = str(tmp_path / "no_data")
    values["data"] = {"name": "digits", "data_dir": nowhere}
    RunRecord(resolve(ConfigDict(values)).to_dict(), NAMES).write(tmp_path)
    arguments = ["--workdir", str(tmp_path), option, *more]
    line = refusal(arguments, monkeypatch, capsys)
    told = f"{model['name']} has no token coefficients"
    if more and "fpn" in model["name"]:
        told = "see `predict --tokens` for segmentation"
    assert line == f"error: {option}: {told}"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_files_that_cannot_be_written_are_named(
    kind, request, tmp_path, monkeypatch, capsys
):
    """Before the images are gone through."""
    _, workdir, _ = request.getfixturevalue(kind)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "evaluate", None)
    option, end = {
        "classifier": ("--token_picture", ".png"),
        "segmenter": ("--page", ".html"),
    }[kind]
    (tmp_path / "file").write_text("in the way")
    (tmp_path / f"folder{end}").mkdir()
    capsys.readouterr()  # of building the dataset
    for name, told in (
        (f"gs://bucket/a{end}", "buckets are not supported yet"),
        ("a.jpg", f"the name must end in {end}"),
        (f"file/a{end}", "File exists"),
        (f"folder{end}", "is a folder: name a file"),
    ):
        arguments = ["--workdir", str(workdir), option, name]
        line = refusal(arguments, monkeypatch, capsys)
        assert line.startswith(f"error: {option} {name}: {told}")
    assert {path.name for path in tmp_path.iterdir()} == {"file", f"folder{end}"}


def test_a_token_picture_leaves_json_alone(classifier, tmp_path, monkeypatch, capsys):
    """And `~` is the home folder."""
    _, workdir, _ = classifier
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["--workdir", str(workdir), "--token_picture", "~/new/a.png"]
    evaluate.main([*arguments, "--format", "json"])
    said = capsys.readouterr()
    assert [row["weights"] for row in json.loads(said.out)] == ["raw", "ema"]
    assert said.err.splitlines()[-1] == f"wrote {tmp_path}/new/a.png"
    check_picture(tmp_path / "new" / "a.png")


def test_a_folder_that_cannot_be_made_is_named(
    classifier, tmp_path, monkeypatch, capsys
):
    """Before the images are gone through."""
    _, workdir, _ = classifier
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(token_statistics, "measure", None)
    arguments = ["--workdir", str(workdir), "--tokens", str(tmp_path / "file" / "out")]
    line = refusal(arguments, monkeypatch, capsys)
    assert line.startswith(f"error: --tokens {tmp_path / 'file' / 'out'}: ")
