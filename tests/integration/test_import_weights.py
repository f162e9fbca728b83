"""PyTorch's weights, from their files to logits, to training and to predictions."""

import argparse
import io
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import tensorflow_datasets as tfds
from flax import traverse_util
from PIL import Image
from torch_resnet import randomize, torch_logits, torch_resnet

from vt_flax.cli import evaluate, import_weights, predict, startup
from vt_flax.data.sources import open_source
from vt_flax.errors import UserError
from vt_flax.inference.predictor import load
from vt_flax.models import create_model
from vt_flax.training.imported import import_weights as import_file
from vt_flax.training.state import create_state
from vt_flax.training.weights import find_checkpoint, initialize, read_weights

TINY = {"stage_sizes": [1, 1, 1, 1], "width": 4}
SET_TINY = ["--set", "stage_sizes=[1,1,1,1]", "--set", "width=4"]


def run(main, arguments, monkeypatch, capsys):
    """Returns what a command prints; it must succeed."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    startup.run(main)
    return capsys.readouterr().out


def variables_of(workdir):
    weights, name = read_weights("here", find_checkpoint("here", str(workdir)))
    assert name == "raw"
    return weights


def flat(tree):
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(tree).items()}


# ----------------------------------------------------------------------------- logits


@pytest.fixture(scope="module")
def photographs(real_data):
    """Two photographs as networks are shown them, float32 (2, 224, 224, 3)."""
    files = sorted((real_data / "imagenet_samples").glob("*/*"))[:400:200]
    pictures = []
    for file in files:
        image = Image.open(file).convert("RGB").resize((224, 224))
        pictures.append(np.asarray(image, np.float32) / 255)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return (np.stack(pictures) - mean) / std


def in_sequential(torch, network):
    """Returns nn.Sequential(*list(resnet.children())[:-1], ...) of torchvision's."""
    nn = torch.nn
    return nn.Sequential(
        *(network.conv1, network.bn1, nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(network.layer1, network.layer2, network.layer3, network.layer4),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), network.fc),
    ).eval()


@pytest.mark.parametrize(
    "depth, variant, form",
    [
        (18, "torchvision", "sequential"),
        (50, "torchvision", "pth"),
        (50, "msra", "safetensors"),
    ],
)
def test_logits_are_pytorchs(depth, variant, form, photographs, tmp_path, torch):
    network = randomize(torch, torch_resnet(torch, depth, variant=variant))
    file = tmp_path / f"resnet{depth}.{form}"
    if form == "safetensors":
        arrays = {k: v.numpy() for k, v in network.state_dict().items()}
        safetensors.numpy.save_file(arrays, file)
    else:
        if form == "sequential":
            network = in_sequential(torch, network)
        torch.save(network.state_dict(), file)
    out, name = tmp_path / "out", f"resnet{depth}"
    options = {} if variant == "torchvision" else {"variant": variant}
    import_file(file, name, out, options=options)
    model = create_model(name, **options)
    logits = jax.jit(model.apply)(variables_of(out), photographs)
    expected = torch_logits(torch, network, photographs)
    assert 0.5 < np.std(expected) < 5 and np.abs(expected[0] - expected[1]).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)
    if variant == "msra":  # which shows in no shape, but in the logits
        other = torch_resnet(torch, depth)
        other.load_state_dict(network.state_dict())
        assert np.abs(torch_logits(torch, other, photographs) - logits).max() > 0.01


def test_logits_of_timms_basic_se_resnet(tmp_path, torch):
    """Its gates are 8 wide where the paper's are 1 (here) or 4."""
    tiny = {"sizes": (1, 1, 1, 1), "width": 16, "gate": 16, "multiple": 8}
    network = randomize(torch, torch_resnet(torch, 18, **tiny))
    torch.save(network.state_dict(), tmp_path / "file.pth")
    options = {**TINY, "width": 16}
    with pytest.raises(UserError, match="--set gate_multiple=8"):
        import_file(
            tmp_path / "file.pth", "se_resnet18", tmp_path / "no", options=options
        )
    options["gate_multiple"] = 8
    import_file(tmp_path / "file.pth", "se_resnet18", tmp_path / "yes", options=options)
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    apply = jax.jit(create_model("se_resnet18", **options).apply)
    logits = apply(variables_of(tmp_path / "yes"), images)
    expected = torch_logits(torch, network, images)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


def test_logits_of_timms_se_resnet(tmp_path, torch):
    options = {**TINY, "width": 16}
    network = torch_resnet(torch, 50, sizes=(1, 1, 1, 1), width=16, gate=16)
    state = randomize(torch, network).state_dict()
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    expected = torch_logits(torch, network, images)
    assert np.std(expected) > 0.1
    apply = jax.jit(create_model("se_resnet50", **options).apply)
    # Two linear maps in a row, instead of convolutions, are the same.
    names = (("se.fc1", "se.fc.0"), ("se.fc2", "se.fc.2"))
    linear = {}
    for key, value in state.items():
        for old, new in names:
            key = key.replace(old, new)
        linear[key] = value[:, :, 0, 0] if "se.fc" in key and value.ndim > 1 else value
    for i, arrays in enumerate((state, linear)):
        torch.save(arrays, tmp_path / "file.pth")
        import_file(
            tmp_path / "file.pth", "se_resnet50", tmp_path / str(i), options=options
        )
        logits = apply(variables_of(tmp_path / str(i)), images)
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------- round trip


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


def tiny_file(file, name="resnet18", classes=5, **options):
    """Writes random weights of a tiny network; returns them as ours."""
    model = create_model(name, num_classes=classes, **{**TINY, **options})
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), dict(shapes)
    )
    safetensors.numpy.save_file(torchvision_names(variables), file)
    return variables


@pytest.mark.parametrize("name", ["resnet34", "resnet101"])
def test_every_parameter_there_and_back(name, tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "file.safetensors", tmp_path / "new" / "out"
    sizes = {"stage_sizes": [1, 2, 2, 1]}
    variables = flat(tiny_file(file, name, **sizes))
    arguments = [file, "--model", name, "--out", out, "--format", "json", *SET_TINY]
    arguments += ["--set", "stage_sizes=[1,2,2,1]"]
    rows = json.loads(run(import_weights.main, arguments, monkeypatch, capsys))
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
    assert record["file"] == "file.safetensors" and record["model"] == name


# ------------------------------------------------------ what is taken and what is left


def test_what_is_left_is_printed(tmp_path, monkeypatch, capsys):
    file = tmp_path / "file.safetensors"
    arrays = torchvision_names(tiny_file(file))
    arrays["aux[/].weight"] = np.zeros((3, 2), np.float32)
    arrays["bn1.num_batches_tracked"] = np.asarray(7)
    safetensors.numpy.save_file(arrays, file)
    arguments = [file, "--model", "resnet18", *SET_TINY, "--num_classes", 9]
    out = [*arguments, "--out", tmp_path / "a", "--format", "json"]
    rows = json.loads(run(import_weights.main, out, monkeypatch, capsys))
    told = {row["name"]: (row["numbers"], row["from"]) for row in rows}
    assert told["head"] == (32 * 9 + 9, "fresh")
    assert told["fc"] == (32 * 5 + 5, "not used")
    assert told["aux[/].weight"] == (6, "not used")
    assert told["num_batches_tracked"] == (1, "not used")
    table = run(
        import_weights.main, [*arguments, "--out", tmp_path / "b"], monkeypatch, capsys
    )
    assert "aux[/].weight" in table and f"--config.init_from={tmp_path}/b" in table

    # The fresh head is a network's own start; nothing is predicted with it.
    for out in ("a", "b"):
        head = variables_of(tmp_path / out)["params"]["head"]
        assert head["kernel"].shape == (32, 9)
        assert 0.008 < np.std(head["kernel"]) < 0.012
        np.testing.assert_array_equal(head["bias"], 0.0)
        assert not (tmp_path / out / "config.json").exists()


def test_the_weights_that_are_asked_for(tmp_path, monkeypatch, capsys):
    """What is taken of a file with an EMA is printed, recorded and in the workdir."""
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
        told = run(
            import_weights.main,
            [*arguments, "--out", out, "--section", section],
            *(monkeypatch, capsys),
        )
        assert (
            f"Took the ResNet in section (top level), under prefix {prefix}, with head "
            f"{prefix}fc.1. The file has others: --section {other}." in told
        )
        record = json.loads((out / "imported.json").read_text())
        assert record["section"] == "" and record["prefix"] == prefix
        assert record["head"] == f"{prefix}fc.1"
        found = flat(variables_of(out))
        for path, value in variables.items():
            np.testing.assert_array_equal(found[path], value * np.float32(scale))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A tiny bottleneck network of five classes, imported, and its variables."""
    folder = tmp_path_factory.mktemp("imported")
    variables = tiny_file(folder / "file.safetensors", "resnet50")
    (folder / "out").mkdir()  # an empty folder is as good as none
    import_file(folder / "file.safetensors", "resnet50", folder / "out", options=TINY)
    return folder / "out", flat(variables)


@pytest.mark.parametrize(
    "name, options, fresh, unused",
    [
        ("resnet50", {}, "", ""),
        # As many classes as there, and yet a head of its own: not one bias is taken.
        ("vt_resnet50", {"token_channels": 64}, "head, stage5", "stage5"),
        ("fpn_resnet50", {}, "fpn, head", "head"),
        ("vt_fpn_resnet50", {}, "fpn, head", "head"),
    ],
)
def test_training_starts_from_it(name, options, fresh, unused, imported):
    workdir, variables = imported
    model = create_model(name, num_classes=5, **TINY, **options)
    shapes = jax.eval_shape(
        lambda: create_state(model, optax.sgd(0.1), (64, 64), 0, ema=True)
    )
    start = jax.tree.map(lambda x: jnp.full(x.shape, 3, x.dtype), shapes)
    state, lines = initialize(start, str(workdir))
    made_anew = [part for part in fresh.split(", ") if part]
    found = flat({"params": state.params, "batch_stats": state.batch_stats})
    taken = 0
    for path, value in found.items():
        if path[1] in made_anew:
            np.testing.assert_array_equal(value, 3.0, err_msg=str(path))
        else:
            np.testing.assert_array_equal(value, variables[path], err_msg=str(path))
            taken += 1
    assert taken == sum(path[1] not in made_anew for path in variables)
    assert (
        lines[0] == f"loaded {taken} arrays from {workdir}/checkpoints/0 (raw weights)"
    )
    expected = [
        f"missing, so initialized afresh: {fresh}",
        f"unexpected, so not used: {unused}",
    ]
    assert lines[1:] == (expected if fresh else [])


# -------------------------------------------------------------- as a run like any other


def test_predict_names_imagenets_classes(tmp_path, monkeypatch, capsys, torch):
    network = randomize(torch, torch_resnet(torch, 18, sizes=(1, 1, 1, 1), width=4))
    torch.save(network.state_dict(), tmp_path / "file.pth")
    arguments = [tmp_path / "file.pth", "--model", "resnet18", *SET_TINY]
    arguments += ["--out", tmp_path / "out"]
    told = run(import_weights.main, arguments, monkeypatch, capsys)
    assert f"vt_flax predict --workdir {tmp_path}/out IMAGE" in told
    picture = tmp_path / "picture.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(picture)

    predictor = load(tmp_path / "out")
    crop = predictor.view(picture).pixels[None].astype(np.float64) / 255
    crop = (crop - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert crop.shape == (1, 224, 224, 3)
    logits = torch_logits(torch, network, crop.astype(np.float32))[0].astype(float)
    shares = np.exp(logits - logits.max())
    best = int(np.argmax(logits))

    arguments = ["--workdir", tmp_path / "out", "--format", "json", picture]
    row = json.loads(run(predict.main, arguments, monkeypatch, capsys))[0]
    names = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    assert row["class 1"] == names[best]
    assert row["probability 1"] == pytest.approx(shares[best] / shares.sum(), abs=1e-4)


def test_evaluate(digits, tmp_path, monkeypatch, capsys, torch):
    network = torch_resnet(torch, 18, sizes=(1, 1, 1, 1), width=4, classes=10)
    randomize(torch, network)
    args = argparse.Namespace(lr=0.1)
    torch.save({"model": network.state_dict(), "args": args}, tmp_path / "file.pth")
    out = tmp_path / "out"
    arguments = [tmp_path / "file.pth", "--model", "resnet18", *SET_TINY, "--out", out]
    run(import_weights.main, arguments, monkeypatch, capsys)
    settings = {"name": "digits", "data_dir": digits, "eval_split": "test"}
    settings |= {"image_size": 32, "eval_resize": 32}
    arguments = ["--workdir", out, "--format", "json"]
    arguments += [f"--config.data.{key}={value}" for key, value in settings.items()]
    row = json.loads(run(evaluate.main, arguments, monkeypatch, capsys))[0]

    source = open_source("digits", "test", digits)
    images, labels = [], []
    for example in source.read(range(len(source))):
        with Image.open(io.BytesIO(example.image)) as image:
            images.append(np.asarray(image.convert("RGB"), np.float32) / 255)
        labels.append(example.label)
    images = (np.stack(images) - np.float32([0.485, 0.456, 0.406])) / np.float32(
        [0.229, 0.224, 0.225]
    )
    assert images.shape[1:] == (32, 32, 3)
    logits = torch_logits(torch, network, images)
    top1 = 100 * np.mean(np.argmax(logits, 1) == np.asarray(labels))
    assert row["weights"] == "raw"
    assert row["top1"] == pytest.approx(top1, abs=1.1 * 100 / len(labels))


# ---------------------------------------------------------------------------- refusals


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
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


def test_bad_arguments(refused, tmp_path):
    file = tmp_path / "file.safetensors"
    tiny_file(file)
    model = ("--model", "resnet18")
    assert "did you mean resnet18" in refused(file, "--model", "resnt18")
    for name in ("vt_resnet50", "fpn_resnet50"):
        line = refused(file, "--model", name)
        assert f"start {name} from it by --config.init_from" in line
    assert "--num_classes 0: must be" in refused(file, *model, "--num_classes", 0)
    line = refused(file, *model, *SET_TINY, "--num_classes", 10**14)
    assert "num_classes=100000000000000: must be at least 1, and at most 1" in line
    assert "a list of int" in refused(file, *model, "--set", "stage_sizes=[1,1,1,1.5]")
    assert "write --num_classes" in refused(file, *model, "--set", "num_classes=5")
    assert "no option 'variants'" in refused(file, *model, "--set", "variants=msra")
    assert "choose from torchvision, msra" in refused(
        file, *model, "--set", "variant=caffe"
    )
    assert "OPTION=VALUE" in refused(file, *model, "--set", "msra")
    assert "required: --model" in refused(file)
    assert "buckets are not supported" in refused(file, *model, "--out", "gs://b/x")


def test_bad_files(refused, tmp_path):
    model = ("--model", "resnet18")
    assert "No such file" in refused(tmp_path / "none.pth", *model)
    assert "is a folder" in refused(tmp_path, *model)
    file = tmp_path / "file.pth"
    file.write_bytes(b"")
    assert "is empty" in refused(file, *model)
    file.write_text("text\n" * 99)
    assert "neither a .safetensors file nor" in refused(file, *model)
    blocks = {"blocks.0.weight": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(blocks, file)
    # That there is no ResNet comes before the question for its head.
    assert "no ResNet with torchvision's or timm's" in refused(file, *model)
    tiny_file(file)
    line = refused(file, *model)
    assert "try --model" not in line and "has nothing for" in line
    assert "(4, 3, 7, 7), resnet18 wants (8, 3, 7, 7)" in refused(
        file, *model, *SET_TINY, "--set", "width=8"
    )
    arrays = torchvision_names(tiny_file(file))
    for i, name in enumerate(("fc.weight", "fc.bias")):
        arrays[f"fc.{3 * i}.weight"] = arrays.pop(name)
    safetensors.numpy.save_file(arrays, file)
    line = refused(file, *model, *SET_TINY)
    assert "over the ResNet (not used: fc): add --num_classes N, for a fresh" in line
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "damaged or cut off" in refused(file, *model)


def test_a_hostile_file_is_refused_and_not_run(refused, tmp_path, torch):
    mark, file = tmp_path / "mark", tmp_path / "file.pth"

    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    torch.save({"conv1.weight": Touch()}, file)
    line = refused(file, "--model", "resnet18")
    assert "'posix.system'" in line and "nothing of it was run" in line
    assert not mark.exists()
