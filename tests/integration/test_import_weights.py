"""PyTorch's weights, from their files to logits, to training and to predictions."""

import json
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import tensorflow_datasets as tfds
from flax import traverse_util
from PIL import Image
from torch_resnet import randomize, torch_logits, torch_resnet

from vt_flax.cli import evaluate, import_weights, predict, startup
from vt_flax.inference.predictor import load
from vt_flax.inference.reading import read_picture
from vt_flax.inference.views import view_of
from vt_flax.models import create_model
from vt_flax.training.imported import import_weights as import_file
from vt_flax.training.weights import find_checkpoint, read_weights

SIZES = [1, 1, 1, 1]
TINY = {"stage_sizes": SIZES, "width": 4}
SET_TINY = ["--set", "stage_sizes=[1,1,1,1]", "--set", "width=4"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns what a command prints; it must succeed."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        startup.run(main)
        return capsys.readouterr().out

    return run


def variables_of(workdir):
    weights, name = read_weights("here", find_checkpoint("here", str(workdir)))
    assert name == "raw"
    return weights


def flat(tree):
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(tree).items()}


# ----------------------------------------------------------------------------- logits


@pytest.mark.parametrize(
    "name, network, options",
    [
        ("resnet18", {}, {}),
        ("resnet50", {}, {}),
        ("resnet50", {"variant": "msra"}, {"variant": "msra"}),
        ("se_resnet50", {"gate": 16}, {}),
        # In timm the gates of basic blocks are at least 8 wide.
        ("se_resnet18", {"gate": 16, "multiple": 8}, {"gate_multiple": 8}),
    ],
)
def test_logits_are_pytorchs(name, network, options, tmp_path, torch):
    depth, form = int(name[-2:]), "pth" if network else "safetensors"
    network = torch_resnet(torch, depth, sizes=SIZES, width=16, classes=9, **network)
    state = randomize(torch, network).state_dict()
    file, out = tmp_path / f"file.{form}", tmp_path / "out"
    if form == "pth":
        torch.save({"state_dict": state}, file)
    else:
        safetensors.numpy.save_file({k: v.numpy() for k, v in state.items()}, file)
    options = {"stage_sizes": SIZES, "width": 16, **options}
    import_file(file, name, out, options=options)
    model = create_model(name, num_classes=9, **options)
    images = np.random.default_rng(0).normal(size=(2, 64, 48, 3)).astype(np.float32)
    logits = jax.jit(model.apply)(variables_of(out), images)
    expected = torch_logits(torch, network, images)
    assert np.std(expected) > 0.1 and np.abs(expected[0] - expected[1]).max() > 0.05
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)
    if "variant" in options:  # which shows in no shape, but in the logits
        other = torch_resnet(torch, depth, sizes=SIZES, width=16, classes=9)
        other.load_state_dict(state)
        assert np.abs(torch_logits(torch, other, images) - logits).max() > 0.01


# ------------------------------------------------- what is loaded and what is not used


def torchvision_names(variables):
    """Our variables under torchvision's names, in PyTorch's layouts."""
    found = {}
    for (part, *path), value in flat(variables).items():
        if path[0] == "head":
            found["fc.weight" if path[1] == "kernel" else "fc.bias"] = value.T
            continue
        at, module = "", path[1]
        if path[0] != "stem":
            at = f"layer{int(path[0][-1]) - 1}.{int(path[1][5:]) - 1}."
            module = path[2]
        number = module[-1] if module[-1].isdigit() else "1"
        if part == "params" and path[-1] == "kernel":
            key = "downsample.0" if module == "shortcut" else f"conv{number}"
            found[f"{at}{key}.weight"] = np.transpose(value, (3, 2, 0, 1))
            continue
        key = "downsample.1" if module == "shortcut_norm" else f"bn{number}"
        array = {
            "scale": "weight",
            "bias": "bias",
            "mean": "running_mean",
            "var": "running_var",
        }[path[-1]]
        found[f"{at}{key}.{array}"] = value
    return {key: np.ascontiguousarray(value) for key, value in found.items()}


def tiny_file(file, name="resnet18", classes=5):
    """Writes random weights of a tiny network; returns them as ours."""
    model = create_model(name, num_classes=classes, **TINY)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), dict(shapes)
    )
    safetensors.numpy.save_file(torchvision_names(variables), file)
    return variables


def test_every_parameter_there_and_back(tmp_path, run):
    file, out = tmp_path / "file.safetensors", tmp_path / "new" / "out"
    variables = flat(tiny_file(file, "resnet101"))
    arguments = [file, "--model", "resnet101", "--out", out, "--format", "json"]
    rows = json.loads(run(import_weights.main, *arguments, *SET_TINY))
    assert [row["name"] for row in rows] == [
        *("stem", "stage2", "stage3", "stage4", "stage5", "head")
    ]
    assert sum(row["arrays"] for row in rows) == len(variables)
    numbers = sum(value.size for value in variables.values())
    assert sum(row["numbers"] for row in rows) == numbers
    found = flat(variables_of(out))
    assert set(found) == set(variables)
    for path, value in variables.items():
        assert found[path].dtype == np.float32
        assert found[path].tobytes() == value.tobytes(), path
    record = json.loads((out / "imported.json").read_text())
    assert record["file"] == "file.safetensors" and record["model"] == "resnet101"


def test_what_is_not_used_is_printed(tmp_path, run):
    file, out = tmp_path / "file.safetensors", tmp_path / "out"
    arrays = torchvision_names(tiny_file(file))
    arrays["aux[/].weight"] = np.zeros((3, 2), np.float32)
    arrays["bn1.num_batches_tracked"] = np.asarray(7)
    safetensors.numpy.save_file(arrays, file)
    table = run(
        import_weights.main,
        *(file, "--model", "resnet18", *SET_TINY, "--num_classes", 9, "--out", out),
    )
    rows = {tuple(line.split()[:1]): line.split()[2:] for line in table.splitlines()}
    assert rows["head",] == [f"{32 * 9 + 9}", "fresh"]
    assert rows["fc",] == [f"{32 * 5 + 5}", "not", "used"]
    assert rows["aux[/]",] == ["6", "not", "used"]
    assert f"--config.init_from={out}" in table
    # The fresh head is initialized as the model does it; nothing is predicted with it.
    head = variables_of(out)["params"]["head"]
    assert head["kernel"].shape == (32, 9)
    assert 0.008 < np.std(head["kernel"]) < 0.012
    np.testing.assert_array_equal(head["bias"], 0.0)
    assert not (out / "config.json").exists()


def test_the_ema_is_taken_where_it_is_asked_for(tmp_path, run):
    variables = flat(tiny_file(tmp_path / "file.safetensors"))
    raw = safetensors.numpy.load_file(tmp_path / "file.safetensors")
    arrays = {}
    for key, value in raw.items():
        key = key.replace("fc.", "fc.1.")
        arrays |= {f"module.{key}": value, f"model_ema.module.{key}": value / 2}
    safetensors.numpy.save_file(arrays, tmp_path / "file.safetensors")
    arguments = [tmp_path / "file.safetensors", "--model", "resnet18", *SET_TINY]
    for section, prefix, other, scale in (
        ("", "module.", "model_ema.module", 1),
        ("model_ema", "model_ema.module.", "module", 0.5),
    ):
        out = tmp_path / f"out{section}"
        printed = run(
            import_weights.main, *arguments, "--out", out, "--section", section
        )
        assert (
            f"Took the ResNet in section (top level), under prefix {prefix}, with head "
            f"{prefix}fc.1. The file has others: --section {other}." in printed
        )
        record = json.loads((out / "imported.json").read_text())
        assert record["section"] == "" and record["prefix"] == prefix
        assert record["head"] == f"{prefix}fc.1"
        found = flat(variables_of(out))
        for path, value in variables.items():
            np.testing.assert_array_equal(found[path], value * np.float32(scale))


# -------------------------------------------------------------- as a run like any other


def test_predict_names_imagenets_classes(tmp_path, run, torch, monkeypatch):
    network = randomize(torch, torch_resnet(torch, 18, sizes=SIZES, width=4))
    torch.save(network.state_dict(), tmp_path / "file.pth")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow_datasets", None)  # not installed
        printed = run(
            import_weights.main,
            *(tmp_path / "file.pth", "--model", "resnet18", *SET_TINY, "--out", out),
        )
    assert f"vt_flax predict --workdir {out} IMAGE" in printed
    picture = tmp_path / "picture.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(picture)

    network_here = load(out)
    crop = view_of(read_picture(picture), network_here.task).pixels[None] / 255
    crop = (crop - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert crop.shape == (1, 224, 224, 3)
    logits = torch_logits(torch, network, crop.astype(np.float32))[0].astype(float)
    probs = np.exp(logits - logits.max())
    best = int(np.argmax(logits))

    arguments = ["--workdir", out, "--format", "json", picture]
    (row,) = json.loads(run(predict.main, *arguments))
    names = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    assert network_here.class_names == names
    assert row["class 1"] == names[best]
    assert row["probability 1"] == pytest.approx(probs[best] / probs.sum(), abs=1e-4)


@pytest.mark.slow
def test_evaluate(digits, tmp_path, run):
    tiny_file(tmp_path / "file.safetensors", "resnet50", 10)
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    import_file(tmp_path / "file.safetensors", "resnet50", out, options=TINY)
    settings = {"name": "digits", "data_dir": digits, "eval_split": "test[:40]"}
    settings |= {"image_size": 32, "eval_resize": 32}
    arguments = [f"--config.data.{key}={value}" for key, value in settings.items()]
    arguments += ["--workdir", out, "--format", "json"]
    (row,) = json.loads(run(evaluate.main, *arguments))
    assert row["weights"] == "raw" and 0 <= row["top1"] <= 100


# -------------------------------------------------------------------------- rejections


@pytest.fixture
def rejected(tmp_path, monkeypatch, capsys):
    """Imports and returns the one line that it ends with; nothing may be left."""

    def run(file, *arguments):
        before = set(tmp_path.iterdir())
        arguments = [file, "--out", tmp_path / "out", *arguments]
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            startup.run(import_weights.main)
        assert stop.value.code == 2
        printed = capsys.readouterr()
        line = printed.err.strip()
        assert line.startswith("error: ") and "\n" not in line and not printed.out
        assert set(tmp_path.iterdir()) == before
        return line

    return run


def test_bad_arguments(rejected, tmp_path):
    file = tmp_path / "file.safetensors"
    tiny_file(file)
    model = ("--model", "resnet18")
    assert "did you mean resnet18" in rejected(file, "--model", "resnt18")
    line = rejected(file, "--model", "vt_resnet50")
    assert "start vt_resnet50 from it by --config.init_from" in line
    assert "--num_classes 0: must be" in rejected(file, *model, "--num_classes", 0)
    assert "write --num_classes" in rejected(file, *model, "--set", "num_classes=5")
    assert "no option 'variants'" in rejected(file, *model, "--set", "variants=msra")
    assert "exists and is not empty" in rejected(file, *model, "--out", tmp_path)


def test_bad_files(rejected, tmp_path):
    model = ("--model", "resnet18")
    assert "No such file" in rejected(tmp_path / "none.pth", *model)
    file = tmp_path / "file.pth"
    blocks = {"blocks.0.weight": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(blocks, file)
    # That there is no ResNet comes before the question for its head.
    assert "no ResNet with torchvision's or timm's" in rejected(file, *model)
    arrays = torchvision_names(tiny_file(file))
    assert "nothing in it is resnet18's" in rejected(file, *model)
    arrays["fc.0.weight"] = arrays.pop("fc.weight")
    arrays["fc.3.bias"] = arrays.pop("fc.bias")
    safetensors.numpy.save_file(arrays, file)
    line = rejected(file, *model, *SET_TINY)
    assert "has no head" in line and "add --num_classes N, for a fresh" in line
