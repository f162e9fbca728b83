"""Arrays of a ResNet are loaded where they fit; one line says what does not."""

import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.weights.files import Array
from vt_flax.weights.finding import find_resnet
from vt_flax.weights.fitting import check_function, fit
from vt_flax.weights.names import looks_like, place_of

FILE = pathlib.Path("file.pth")
SIZES = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}


def shapes_of(name, **options):
    """The shapes of a model's variables by path."""
    model = create_model(name, **options)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return {k: v.shape for k, v in traverse_util.flatten_dict(dict(shapes)).items()}


def torchvision_shapes(name, width=64, classes=1000):
    """Every array of torchvision's state dict with its shape, written out by its rule.

    Sources: He et al. (2015), table 1; torchvision's names.
    """
    bottleneck = name in ("resnet50", "resnet101")
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
    return fit(FILE, arrays, found.names, model, wanted, head=bool(found.head))


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
    assert looks_like(theirs) == name


SMALL = {"width": 4}


@pytest.mark.parametrize(
    "reduce, expand, flat, biases",
    [
        ("se.fc1", "se.fc2", False, True),  # timm
        ("se_module.fc1", "se_module.fc2", False, True),  # Cadene
        ("se.fc.0", "se.fc.2", True, False),  # two linear maps, often without biases
    ],
)
def test_gates(reduce, expand, flat, biases):
    theirs = torchvision_shapes("resnet50", width=8, classes=5)
    ours = shapes_of("resnet50", width=8, num_classes=5)
    if reduce.startswith("se_module"):
        stem = {k: v for k, v in theirs.items() if k.startswith(("conv1", "bn1"))}
        theirs = {k: v for k, v in theirs.items() if k not in stem}
        theirs |= {f"layer0.{key}": shape for key, shape in stem.items()}
        theirs["last_linear.weight"] = theirs.pop("fc.weight")
        theirs["last_linear.bias"] = theirs.pop("fc.bias")
    for i, blocks in enumerate(SIZES["resnet50"]):
        for j in range(blocks):
            channels, at = 32 * 2**i, f"layer{i + 1}.{j}"
            inner, end = channels // 16, () if flat else (1, 1)
            theirs[f"{at}.{reduce}.weight"] = (inner, channels, *end)
            theirs[f"{at}.{expand}.weight"] = (channels, inner, *end)
            gate = ("params", f"stage{i + 2}", f"block{j + 1}", "gate")
            ours[*gate, "reduce", "kernel"] = (channels, inner)
            ours[*gate, "expand", "kernel"] = (inner, channels)
            ours[*gate, "reduce", "bias"] = (inner,)
            ours[*gate, "expand", "bias"] = (channels,)
            if biases:
                theirs[f"{at}.{reduce}.bias"] = (inner,)
                theirs[f"{at}.{expand}.bias"] = (channels,)
    arrays = random_arrays(theirs)
    assert looks_like(arrays) == "se_resnet50"
    found = load(arrays, "se_resnet50", ours)
    assert set(found.arrays) == set(ours) and not found.fresh
    assert len(found.zeros) == (0 if biases else 32)
    for i, j in ((0, 0), (2, 5)):
        at = f"layer{i + 1}.{j}"
        gate = ("params", f"stage{i + 2}", f"block{j + 1}", "gate")
        for part, key in (("reduce", reduce), ("expand", expand)):
            kernel = (
                arrays[f"{at}.{key}.weight"]
                .read()
                .reshape(theirs[f"{at}.{key}.weight"][:2])
            )
            np.testing.assert_array_equal(found.arrays[*gate, part, "kernel"], kernel.T)
            bias = found.arrays[*gate, part, "bias"]
            if biases:
                np.testing.assert_array_equal(bias, arrays[f"{at}.{key}.bias"].read())
            else:
                np.testing.assert_array_equal(bias, 0.0)


def test_legacy_gates_that_compute_something_else():
    bottleneck = ["layer0.conv1.weight", "layer1.0.conv3.weight"]
    assert "max pooling" in check_function(FILE, bottleneck, "msra")[0]
    with pytest.raises(UserError, match="--set variant=msra"):
        check_function(FILE, bottleneck, "torchvision")
    with pytest.raises(UserError, match="a ReLU goes before the gate"):
        check_function(FILE, bottleneck[:1], "msra")
    assert check_function(FILE, ["conv1.weight"], "torchvision") == []


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_every_precision_becomes_float32(dtype):
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    arrays = random_arrays(torchvision_shapes("resnet18", **SMALL), dtype)
    found = load(arrays, "resnet18", shapes_of("resnet18", **SMALL))
    kernel = found.arrays["params", "stage3", "block1", "conv1", "kernel"]
    assert kernel.dtype == np.float32
    value = arrays["layer2.0.conv1.weight"].read().astype(np.float32)
    for out, into in ((0, 0), (7, 3)):
        np.testing.assert_array_equal(kernel[:, :, into, out], value[out, into])


# --------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def wanted():
    return shapes_of("resnet18", num_classes=10, **SMALL)


@pytest.fixture
def shapes():
    return torchvision_shapes("resnet18", classes=10, **SMALL)


def test_another_resnet(wanted):
    for name, what in (
        ("resnet34", "has no place for layer1.2.conv1.weight"),
        ("resnet50", "has no place for layer1.0.conv3.weight"),
    ):
        there = unreadable(torchvision_shapes(name, classes=10, **SMALL))
        line = error_of(there, "resnet18", wanted)
        assert f"resnet18 {what}" in line and f"try --model {name}" in line
    deep = shapes_of("resnet34", num_classes=10, **SMALL)
    there = unreadable(torchvision_shapes("resnet18", classes=10, **SMALL))
    line = error_of(there, "resnet34", deep)
    assert "nothing for resnet34's stage2/block3/" in line
    assert "try --model resnet18" in line


@pytest.mark.parametrize(
    "key, shape, message",
    [
        ("conv1.weight", (4, 3, 3, 3), "(4, 3, 3, 3), resnet18 wants (4, 3, 7, 7)"),
        ("conv1.weight", (4, 147), "(4, 147), resnet18 wants (4, 3, 7, 7)"),
        ("fc.bias", (11,), "(11,), resnet18 wants (10,)"),
        ("layer3.1.bn2.running_var", (15,), "(15,), resnet18 wants (16,)"),
        ("layer4.0.downsample.0.weight", (), "(), resnet18 wants (32, 16, 1, 1)"),
    ],
)
def test_a_shape_that_cannot_be_explained(key, shape, message, shapes, wanted):
    shapes[key] = shape
    line = error_of(unreadable(shapes), "resnet18", wanted)
    assert f"file.pth: {key} has shape {message}: choose the model and" in line


@pytest.mark.parametrize(
    "extra",
    ["conv1.bias", "layer2.0.downsample.2.weight", "layer1.0.attn.conv.weight"],
)
def test_a_resnet_with_more_parts(extra, shapes, wanted):
    line = error_of(unreadable({**shapes, extra: (4,)}), "resnet18", wanted)
    assert f"resnet18 has no place for {extra}: choose" in line


def test_one_place_twice(shapes, wanted):
    there = unreadable({**shapes, "layer0.conv1.weight": (4, 3, 7, 7)})
    line = error_of(there, "resnet18", wanted)
    assert "conv1.weight and layer0.conv1.weight are the same array" in line


def test_heads(shapes, wanted):
    headless = {k: v for k, v in shapes.items() if not k.startswith("fc.")}
    paths = {("params", "head", "kernel"), ("params", "head", "bias")}
    for there, count in ((shapes, 11), (headless, 10)):
        found = load(random_arrays(there), "resnet18", wanted, num_classes=count)
        assert set(found.fresh) == paths and not paths & set(found.arrays)
        assert found.counters == 20
    # As a convolution over the pooled map, and without biases, which are zeros then.
    shapes["fc.weight"] = (10, 32, 1, 1)
    del shapes["fc.bias"]
    arrays = random_arrays(shapes)
    found = load(arrays, "resnet18", wanted)
    assert found.zeros == [("params", "head", "bias")]
    kernel = arrays["fc.weight"].read()[:, :, 0, 0].T
    np.testing.assert_array_equal(found.arrays["params", "head", "kernel"], kernel)


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
