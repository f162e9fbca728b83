"""Arrays of a ResNet are loaded where they fit; one line says what does not."""

import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.weights.files import Array
from vt_flax.weights.finding import find_resnet
from vt_flax.weights.fitting import fit
from vt_flax.weights.names import place_of

FILE = pathlib.Path("file.pth")
SIZES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
SMALL = {"width": 4}


def shapes_of(name, **options):
    """Returns the shapes of a model's variables by path."""
    model = create_model(name, **options)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return {k: v.shape for k, v in traverse_util.flatten_dict(dict(shapes)).items()}


def torchvision_shapes(name, width=64, classes=1000):
    """Every array of torchvision's state dict with its shape, written out by its rule.

    Sources: He et al. (2015), table 1; torchvision's names.
    """
    bottleneck = name == "resnet50"
    shapes = {"conv1.weight": (width, 3, 7, 7)}

    def norm(at, channels):
        for array in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{at}.{array}"] = (channels,)
        shapes[f"{at}.num_batches_tracked"] = ()

    norm("bn1", width)
    inside = width
    for i, blocks in enumerate(SIZES[name]):
        w = width * 2**i
        outside = 4 * w if bottleneck else w
        for j in range(blocks):
            at = f"layer{i + 1}.{j}"
            plan = [(w, inside, 3), (w, w, 3)]
            if bottleneck:
                plan = [(w, inside, 1), (w, w, 3), (outside, w, 1)]
            for k, (out, into, kernel) in enumerate(plan, 1):
                shapes[f"{at}.conv{k}.weight"] = (out, into, kernel, kernel)
                norm(f"{at}.bn{k}", out)
            if j == 0 and (i > 0 or inside != outside):
                shapes[f"{at}.downsample.0.weight"] = (outside, inside, 1, 1)
                norm(f"{at}.downsample.1", outside)
            inside = outside
    shapes |= {"fc.weight": (classes, inside), "fc.bias": (classes,)}
    return shapes


def random_arrays(shapes, dtype=np.float32):
    """Returns arrays of some shapes, no two of which are alike."""
    rng = np.random.default_rng(0)

    def one(shape):
        array = np.asarray(rng.uniform(0.5, 1, shape), dtype)
        return Array("", shape, np.dtype(dtype).name, lambda: array)

    return {name: one(shape) for name, shape in shapes.items()}


def unreadable(shapes):
    """Returns arrays that fail to be read: shapes are checked before."""

    def read():
        raise AssertionError("read too early")

    return {name: Array("", shape, "float32", read) for name, shape in shapes.items()}


def load(arrays, model, wanted, num_classes=0):
    found = find_resnet(FILE, arrays, num_classes=num_classes)
    return fit(FILE, arrays, found.names, model, wanted)


def error_of(arrays, model, wanted):
    with pytest.raises(UserError) as error:
        load(arrays, model, wanted)
    line = str(error.value)
    assert line.startswith("file.pth: ") and "\n" not in line
    return line


@pytest.mark.parametrize("name", SIZES)
def test_every_array_of_torchvision_has_a_place_and_the_other_way_round(name):
    theirs = torchvision_shapes(name)
    ours = shapes_of(name)
    places = {key: place_of(key) for key in theirs if "tracked" not in key}
    assert sorted(place.path for place in places.values()) == sorted(ours)
    for key, place in places.items():
        assert place.fits(theirs[key], ours[place.path]), key


def test_precisions_become_float32():
    wanted = shapes_of("resnet18", **SMALL)
    for dtype in (np.float64, ml_dtypes.bfloat16):
        arrays = random_arrays(torchvision_shapes("resnet18", **SMALL), dtype)
        found = load(arrays, "resnet18", wanted)
        assert set(found) == set(wanted)
        kernel = found["params", "stage3", "block1", "conv1", "kernel"]
        assert kernel.dtype == np.float32
        value = arrays["layer2.0.conv1.weight"].read().astype(np.float32)
        for out, into in ((0, 0), (7, 3)):
            np.testing.assert_array_equal(kernel[:, :, into, out], value[out, into])


# -------------------------------------------------------------------- what is rejected


@pytest.fixture(scope="module")
def wanted():
    return shapes_of("resnet18", num_classes=10, **SMALL)


@pytest.fixture
def shapes():
    return torchvision_shapes("resnet18", classes=10, **SMALL)


def test_another_resnet(shapes, wanted):
    for name, key in (("resnet34", "layer1.2.conv1"), ("resnet50", "layer1.0.conv3")):
        there = unreadable(torchvision_shapes(name, classes=10, **SMALL))
        line = error_of(there, "resnet18", wanted)
        assert f"resnet18 has no place for {key}.weight" in line
    deep = shapes_of("resnet34", num_classes=10, **SMALL)
    line = error_of(unreadable(shapes), "resnet34", deep)
    assert "nothing in it is resnet34's stage2/block3/" in line
    # Parts that no ResNet of ours has, such as legacy_seresnet's.
    for extra in ("conv1.bias", "layer1.0.attn.conv.weight", "layer0.conv1.weight"):
        line = error_of(unreadable({**shapes, extra: (4,)}), "resnet18", wanted)
        assert f"resnet18 has no place for {extra}: choose" in line


@pytest.mark.parametrize(
    "key, shape, expected",
    [
        ("conv1.weight", (4, 3, 3, 3), (4, 3, 7, 7)),
        ("fc.bias", (11,), (10,)),
        ("layer3.1.bn2.running_var", (15,), (16,)),
        ("layer4.0.downsample.0.weight", (), (32, 16, 1, 1)),
    ],
)
def test_another_shape(key, shape, expected, shapes, wanted):
    shapes[key] = shape
    line = error_of(unreadable(shapes), "resnet18", wanted)
    assert f"{key} has shape {shape}, resnet18 wants {expected}: choose" in line


def test_without_a_head(shapes, wanted):
    headless = {k: v for k, v in shapes.items() if not k.startswith("fc.")}
    paths = {("params", "head", "kernel"), ("params", "head", "bias")}
    for there, classes in ((shapes, 11), (headless, 10)):
        found = load(random_arrays(there), "resnet18", wanted, num_classes=classes)
        assert set(found) == set(wanted) - paths


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("layer1.0.conv1.weight", np.nan, "not finite"),
        ("layer1.0.conv1.weight", 1e39, "not finite"),
        ("layer1.0.bn1.running_var", -1.0, "a variance under 0"),
        ("layer1.0.bn1.weight", None, "is int32: get the weights as float64"),
    ],
)
def test_numbers_that_no_weight_can_be(key, value, message, shapes, wanted):
    arrays = random_arrays(shapes, np.float64)
    array = arrays[key].read()
    if value is None:
        array = array.astype(np.int32)
    else:
        array.ravel()[-1] = value
    arrays[key] = Array("", array.shape, array.dtype.name, lambda: array)
    line = error_of(arrays, "resnet18", wanted)
    assert key in line and message in line
