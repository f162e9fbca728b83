"""The ResNet in a checkpoint is found, or one line says why not."""

import pathlib
import types

import numpy as np
import pytest
from torch_resnet import randomize, torch_resnet

from vt_flax.errors import UserError
from vt_flax.weights.files import Array, read_arrays
from vt_flax.weights.finding import find_resnet
from vt_flax.weights.names import COUNTER, place_of

FILE = pathlib.Path("file.pth")


# ------------------------------------------------ one ResNet as it is saved by trainers


@pytest.fixture(scope="module")
def made(torch):
    """A network with five classes, its modules and its state dict."""
    nn = torch.nn
    net = torch_resnet(torch, 18, sizes=(1, 1, 1, 1), width=4, classes=5)
    state = dict(randomize(torch, net).state_dict())
    stem = [net.conv1, net.bn1, nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]

    def saved(**parts):
        module = nn.Module()
        for name, part in parts.items():
            module.add_module(name, part)
        return module.state_dict()

    return types.SimpleNamespace(
        torch=torch,
        net=net,
        state=state,
        bare={key: state[key] for key in state if not key.startswith("fc.")},
        head={"weight": state["fc.weight"], "bias": state["fc.bias"]},
        ema={key: value / 2 for key, value in state.items()},
        stem=nn.Sequential(*stem),
        stages={f"layer{i}": stage for i, stage in enumerate(stages, 1)},
        # torchvision's children, of which people make a Sequential.
        body=nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1)),
        sequential=lambda *modules: nn.Sequential(*modules).state_dict(),
        flatten=nn.Flatten(),
        saved=saved,
    )


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def renamed(state, old, new):
    """Returns a state dict with another name for a part."""
    return {f".{k}".replace(f".{old}.", f".{new}.")[1:]: v for k, v in state.items()}


FORMS = {
    # What is saved; section, prefix and head.
    "plain": (lambda m: m.state, "", "", "fc"),
    "timm, torchvision": (
        lambda m: {"optimizer": {"state": {0: m.head}}, "model": m.state, "epoch": 1},
        *("model", "", "model.fc"),
    ),
    "tutorial": (
        lambda m: {
            "epoch": 5,
            "model_state_dict": m.state,
            "loss": m.torch.tensor(0.4),
        },
        *("model_state_dict", "", "model_state_dict.fc"),
    ),
    "net_in_data_parallel": (
        lambda m: {"net": under("module.", m.state), "acc": 93.0},
        *("net", "module.", "net.module.fc"),
    ),
    "list": (lambda m: [m.state, {"lr": 0.1}], "0", "", "0.fc"),
    "parts apart": (
        lambda m: {"encoder": m.bare, "classifier": m.head},
        *("encoder", "", "classifier"),
    ),
    "VISSL": (
        lambda m: {"classy_state_dict": {"base": {"trunk": under("blocks.", m.state)}}},
        "classy_state_dict.base.trunk",
        "blocks.",
        "classy_state_dict.base.trunk.blocks.fc",
    ),
    "wrapper_backbone": (
        lambda m: under("backbone.", m.state),
        *("", "backbone.", "backbone.fc"),
    ),
    "torch_compile": (
        lambda m: under("_orig_mod.", m.state),
        *("", "_orig_mod.", "_orig_mod.fc"),
    ),
    "compiled in DDP": (
        lambda m: under("module._orig_mod.", m.state),
        *("", "module._orig_mod.", "module._orig_mod.fc"),
    ),
    "a compiled stage": (
        lambda m: renamed(m.state, "layer1", "layer1._orig_mod"),
        *("", "", "fc"),
    ),
    "lightning": (
        lambda m: {
            "state_dict": {**under("model.", m.state), "loss.weight": m.torch.ones(5)}
        },
        *("state_dict", "model.", "state_dict.model.fc"),
    ),
    "normalized": (
        lambda m: {"normalize.mean": m.torch.ones(3), **under("net.", m.state)},
        *("", "net.", "net.fc"),
    ),
    "head_in_sequential": (lambda m: renamed(m.state, "fc", "fc.1"), "", "", "fc.1"),
    "mmpretrain": (
        lambda m: {
            "state_dict": under("backbone.", m.bare) | under("head.fc.", m.head)
        },
        *("state_dict", "backbone.", "state_dict.head.fc"),
    ),
    "classifier": (
        lambda m: renamed(m.state, "fc", "classifier"),
        "",
        "",
        "classifier",
    ),
    "Cadene": (lambda m: renamed(m.state, "fc", "last_linear"), "", "", "last_linear"),
    "pytorch-cifar": (
        lambda m: {
            "net": renamed(renamed(m.state, "downsample", "shortcut"), "fc", "linear")
        },
        *("net", "", "net.linear"),
    ),
    "head as a convolution": (
        lambda m: {**m.state, "fc.weight": m.state["fc.weight"][:, :, None, None]},
        *("", "", "fc"),
    ),
    "children": (lambda m: m.sequential(*m.body, m.flatten, m.net.fc), "", "", "10"),
    "children, nested": (
        lambda m: m.sequential(m.body, m.flatten, m.net.fc),
        *("", "0.", "2"),
    ),
    "children as features": (
        lambda m: m.saved(features=m.body, fc=m.net.fc),
        *("", "features.", "fc"),
    ),
    "stem in a Sequential": (
        lambda m: m.saved(layer0=m.stem, **m.stages, fc=m.net.fc),
        *("", "", "fc"),
    ),
    "stem in a Sequential, numbers": (
        lambda m: m.sequential(m.stem, *m.stages.values(), m.flatten, m.net.fc),
        *("", "", "6"),
    ),
    "registered twice": (
        lambda m: m.saved(backbone=m.net, features=m.body),
        *("", "backbone.", "backbone.fc"),
    ),
    "two_sets": (
        lambda m: {"state_dict": m.state, "state_dict_ema": m.ema},
        *("state_dict", "", "state_dict.fc"),
    ),
    "EMA first, and by prefix": (
        lambda m: {"state_dict": under("ema_model.", m.ema) | under("model.", m.state)},
        *("state_dict", "model.", "state_dict.model.fc"),
    ),
}


def check_arrays(arrays, found, state):
    """Checks that exactly the arrays of a state dict are found."""
    taken = {place_of(n).path: k for k, n in found.names.items() if COUNTER not in n}
    expected = {place_of(n).path: n for n in state if COUNTER not in n}
    assert set(taken) == set(expected)
    for path, name in expected.items():
        value = arrays[taken[path]].read().reshape(state[name].shape)
        np.testing.assert_array_equal(value, state[name].numpy(), err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_the_resnet_is_found(form, made, tmp_path):
    save, *expected = FORMS[form]
    made.torch.save(save(made), tmp_path / "file.pth")
    arrays = read_arrays(tmp_path / "file.pth")
    found = find_resnet(FILE, arrays)
    assert [found.section, found.prefix, found.head] == expected
    assert found.classes == 5
    check_arrays(arrays, found, made.state)
    left = [key for keys in found.left.values() for key in keys]
    assert sorted([*found.names, *left]) == sorted(arrays)


def test_safetensors_are_searched_as_well(made, tmp_path):
    from safetensors.torch import save_file

    save_file(under("model.backbone.", made.state), tmp_path / "file.safetensors")
    arrays = read_arrays(tmp_path / "file.safetensors")
    found = find_resnet(FILE, arrays)
    assert (found.prefix, found.head) == ("model.backbone.", "model.backbone.fc")
    check_arrays(arrays, found, made.state)


# ------------------------------------------------------------- several, or none of them

BODY = {"conv1.weight": (8, 3, 7, 7), "bn1.weight": (8,)} | {
    f"layer{i}.0.conv{j}.weight": (64, 64, 3, 3) for i in (1, 2, 3, 4) for j in (1, 2)
}
HEAD = {"fc.weight": (10, 64), "fc.bias": (10,)}


def arrays_of(shapes):
    """Returns arrays that have these shapes; those of two prefixes differ."""

    def array(key, shape):
        value = np.full(shape, sum(map(ord, key)), np.float32)
        return Array("", shape, "float32", lambda: value)

    return {key: array(key, shape) for key, shape in shapes.items()}


def found_in(shapes, **options):
    return find_resnet(FILE, arrays_of(shapes), **options)


def error_of(shapes, **options):
    with pytest.raises(UserError) as error:
        found_in(shapes, **options)
    assert str(error.value).startswith("file.pth") and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "first, second",
    [
        ("student.module.backbone.", "teacher.backbone."),
        ("state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
        ("online_network.", "target_network."),
        ("", "teacher."),
    ],
)
def test_two_resnets_have_to_be_chosen_from(first, second):
    shapes = under(first, BODY | HEAD) | under(second, BODY | HEAD)
    line = error_of(shapes)
    names = [first.rstrip(".") or ".", second.rstrip(".")]
    assert line.endswith(f"2 ResNets: choose one by --section: {', '.join(names)}")
    for start, name, other in ((first, names[0], names[1]), (second, *names[::-1])):
        # By the whole name, or by a part of it that the other does not have.
        for section in {name, *name.split(".")} - {*other.split(".")} - {""}:
            found = found_in(shapes, section=section)
            assert {*found.names} == {*under(start, BODY | HEAD)}
            assert found.others == [other]
    line = error_of(shapes, section="nothing")
    assert "--section nothing: no ResNet is there; choose from " in line
    assert line.endswith(", ".join(names))


def test_averages_are_offered_and_taken():
    shapes = under("state_dict.", BODY | HEAD) | under("state_dict_ema.", BODY | HEAD)
    found = found_in(shapes)
    assert found.others == ["state_dict_ema"] and "state_dict.fc.bias" in found.names
    assert len(found.left["state_dict_ema"]) == len(BODY | HEAD)
    found = found_in(shapes, section="state_dict_ema")
    assert found.head == "state_dict_ema.fc" and found.others == ["state_dict"]
    # Alone there is no choice.
    assert found_in(under("model_ema.module.", BODY)).others == []


@pytest.mark.parametrize(
    "head",
    [
        # A head of two layers, fastai's, and one behind a normalization.
        {"fc.0.weight": (20, 64), "fc.0.bias": (20,), "fc.3.weight": (10, 20)},
        {"head.norm.weight": (64,), "head.fc.weight": (10, 64)},
        # Other numbers of features, axes, or names.
        {"fc.weight": (10, 63), "fc.bias": (10,)},
        {"fc.weight": (10, 64, 3, 3)},
        {"projector.weight": (128, 64)},
        {"neck.fc.weight": (10, 64)},
        {},
    ],
)
def test_other_heads_are_left(head):
    found = found_in(BODY | head, num_classes=10)
    assert (found.head, found.classes) == ("", 0) and {*found.names} == {*BODY}
    assert [key for keys in found.left.values() for key in keys] == [*head]


def test_the_head_is_chosen_by_its_classes():
    shapes = under("backbone.", BODY | HEAD) | {"classifier.weight": (7, 64)}
    line = error_of(shapes)
    assert "several heads: choose one by --num_classes" in line
    assert line.endswith("backbone.fc (10), classifier (7)")
    assert found_in(shapes, num_classes=7).head == "classifier"
    assert found_in(shapes, num_classes=10).head == "backbone.fc"
    assert found_in(shapes, num_classes=8).head == ""


def test_what_is_left_is_named_by_what_it_belongs_to():
    more = ["backbone.fpn.inner.0.weight", "backbone.fpn.inner.1.weight", "rpn.weight"]
    shapes = under("backbone.body.", BODY) | dict.fromkeys(more, (3,))
    assert found_in(shapes).left == {"backbone.fpn": more[:2], "rpn": more[2:]}


@pytest.mark.parametrize(
    "shapes, message",
    [
        ({}, "holds not one tensor: in PyTorch, save the weights alone"),
        (
            {f"blocks.{i}.attn.qkv.weight": (12, 4) for i in range(9)},
            "(it holds blocks.0.attn.qkv.weight, blocks.1.attn.qkv.weight, "
            "blocks.2.attn.qkv.weight, blocks.3.attn.qkv.weight, "
            "blocks.4.attn.qkv.weight and 4 more): choose a file of",
        ),
        (
            {
                "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight": (
                    8,
                    8,
                    1,
                    1,
                )
            },
            "seem to be Hugging Face's, which are not read",
        ),
        (
            {"model.backbone.bottom_up.res2.0.conv1.weight": (8, 8, 1, 1)},
            "seem to be Detectron2's, which are not read",
        ),
        # HRNet's branches have blocks with numbers, but no stem.
        (
            {f"stage2.0.branches.{i}.0.conv1.weight": (8, 8, 3, 3) for i in range(3)},
            "no ResNet with torchvision's or timm's names",
        ),
    ],
)
def test_no_resnet(shapes, message):
    assert message in error_of(shapes)
    assert message in error_of(shapes, num_classes=7)
