"""`evaluate --tokens` and `--token_picture`, recounted image by image in NumPy."""

import functools
import json

import jax
import numpy as np
import pytest
import token_reference as reference
from ml_collections import ConfigDict
from pair_trees import draw_image, draw_labels, write
from PIL import Image

from vt_flax.cli import evaluate
from vt_flax.data.augment.scaled import eval_inputs
from vt_flax.data.batches import eval_batches
from vt_flax.data.prepare.build import prepare as build
from vt_flax.inference import token_statistics
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
    """Maps that the tokenizers sow, (images, L, h, w) by module, means over heads."""
    mean, std = (np.asarray(run.config.data[key]) for key in ("mean", "std"))
    inputs = ((np.asarray(images) / 255 - mean) / std).astype(np.float32)

    @jax.jit
    def apply(variables, inputs):
        return run.model.apply(
            variables, inputs, train=False, mutable=["intermediates"]
        )[1]["intermediates"]

    (place,) = apply(jax.device_get(variables), inputs).values()
    maps = {}
    for name, module in place.items():
        module = module.get("tokenizer", module)
        # Transformer and projectors sow what is theirs.
        if "coefficients" in module:
            found = np.asarray(module["coefficients"][0], np.float64)
            maps[name.split("_")[0]] = found.mean(1) if found.ndim == 5 else found
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


def check_modules(report, expected, tokens):
    for module in report["modules"]:
        name = module["module"]
        numbers = [token["token"] for token in module["tokens"]]
        assert numbers == list(range(tokens - len(numbers), tokens))
        for row, token in enumerate(module["tokens"]):
            for key in ("relative_entropy", "overlap"):
                mean, std = (values[row] for values in expected[f"{name}/{key}"])
                assert token[key]["mean"] == pytest.approx(mean, rel=1e-3, abs=1e-5)
                assert token[key]["std"] == pytest.approx(std, rel=1e-3, abs=1e-5)


def check_picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_a_classifiers_report_equals_a_recount(
    classifier, tmp_path, monkeypatch, capsys
):
    """Also with a picture, which leaves JSON alone; `~` is the home folder."""
    run, workdir, variables = classifier
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["--workdir", str(workdir), "--tokens", "--format", "json"]
    evaluate.main([*arguments, "--token_picture", "~/new/a.png"])
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report == json.loads((workdir / "tokens" / "tokens.json").read_text())
    check_picture(workdir / "tokens" / "tokens.png")
    assert err.splitlines()[-1] == f"wrote {tmp_path}/new/a.png"
    check_picture(tmp_path / "new" / "a.png")
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


def test_a_segmenters_report_equals_a_recount(segmenter, tmp_path, capsys):
    run, workdir, variables = segmenter
    folder = tmp_path / "new"
    evaluate.main(["--workdir", str(workdir), "--tokens", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    report = json.loads((folder / "tokens.json").read_text())
    check_picture(folder / "tokens.png")
    assert report["examples"] == 11
    assert "11 examples" in lines[0] and "image_mask_folder" in lines[0]

    batch = whole_split(run)
    view = jax.jit(functools.partial(eval_inputs, config=run.config))
    inputs = view(batch["image"], batch["size"]).images
    maps = sown(run, variables, inputs)
    rows = []
    for i, (height, width) in enumerate(batch["size"].tolist()):
        # A short side of 16, unless that does not fit 32 x 24.
        factor = min(16 / min(height, width), 32 / height, 24 / width)
        length = [round(side * factor) for side in (height, width)]
        mine = {name: of_module[i] for name, of_module in maps.items()}
        label = batch["label"][i, :height, :width]
        figures = reference.statistics(mine, length, (32, 24))
        shares = reference.class_statistics(mine, label, length, (32, 24), 3)
        rows.append(figures | shares)
    expected = reference.all_examples(rows)
    check_modules(report, expected, 2)

    area = expected["area"][0][:-1]
    assert list(report["area"].values()) == pytest.approx(area, rel=1e-4)
    for module in report["modules"]:
        name, size = (
            module["module"],
            [str(module["height"]), "x", str(module["width"])],
        )
        found = expected[f"{name}/classes"][0]
        for row, token in enumerate(module["tokens"]):
            assert list(token["classes"]) == list(NAMES)
            shares = list(token["classes"].values())
            assert shares == pytest.approx(found[row, :-1], rel=1e-3)
            times = found[row, :-1] / area
            start = [name, *size, str(row)]
            (words,) = (x.split() for x in lines if x.split()[:5] == start)
            entropy = 100 * expected[f"{name}/relative_entropy"][0][row]
            assert float(words[5]) == pytest.approx(entropy, abs=0.06)
            assert words[-2] == NAMES[times.argmax()]
            assert float(words[-1]) == pytest.approx(times.max(), abs=6e-3)


@pytest.mark.parametrize(
    "option, more, model, message",
    [
        ("--tokens", [], {"name": "resnet18"}, "resnet18 has no token coefficients"),
        (
            *("--token_picture", ["tokens.png"]),
            {"name": "fpn_resnet18"},
            "see `predict --tokens` for segmentation",
        ),
        (
            *("--token_picture", ["tokens.png"]),
            # Tokens without coefficients.
            {
                **{"name": "vt_resnet18", "first_tokenizer": "pooling"},
                **{"tokenizer": "pooling", "position_encoding": False},
            },
            "vt_resnet18 has no token coefficients",
        ),
    ],
)
def test_networks_without_tokens_are_rejected_before_their_data(
    option,
    more,
    model,
    message,
    tmp_path,
    refusal,
):
    data = {"name": "digits", "data_dir": str(tmp_path / "no_data")}
    config = resolve(ConfigDict({"model": model, "data": data}))
    RunRecord(config.to_dict(), NAMES).write(tmp_path)
    line = refusal(evaluate.main, "--workdir", tmp_path, option, *more)
    assert line == f"error: {option}: {message}"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "option, name, fact",
    [
        ("--token_picture", "a.jpg", "the name must end in .png"),
        ("--token_picture", "folder.png", "Is a directory"),
        ("--tokens", "file/out", "Not a directory"),
    ],
)
def test_files_that_cannot_be_written_are_named(
    option,
    name,
    fact,
    classifier,
    tmp_path,
    monkeypatch,
    capsys,
    refusal,
):
    """Before the images are gone through."""
    _, workdir, _ = classifier
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "evaluate", None)
    monkeypatch.setattr(token_statistics, "measure", None)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    capsys.readouterr()  # of building the dataset
    line = refusal(evaluate.main, "--workdir", workdir, option, name)
    assert line.startswith(f"error: {option} {name}: {fact}")


def test_a_failed_evaluation_leaves_no_file(classifier, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("it failed")

    _, workdir, _ = classifier
    monkeypatch.setattr(evaluate, "evaluate", fail)
    older, new = tmp_path / "older.png", tmp_path / "new" / "a.png"
    older.write_text("an older picture")
    for picture in (older, new):
        arguments = ["--workdir", str(workdir), "--token_picture", str(picture)]
        with pytest.raises(RuntimeError, match="it failed"):
            evaluate.main(arguments)
    assert older.read_text() == "an older picture" and not new.exists()
