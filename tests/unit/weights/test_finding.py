"""The ResNet in a checkpoint is found, or one line says why not."""

import pathlib

import pytest

from vt_flax.errors import UserError
from vt_flax.weights.files import Array, read_arrays
from vt_flax.weights.finding import find_resnet

FILE = pathlib.Path("file.pth")

BODY = {"conv1.weight": (8, 3, 7, 7), "bn1.weight": (8,)} | {
    f"layer{i}.0.conv{j}.weight": (64, 64, 3, 3) for i in (1, 2, 3, 4) for j in (1, 2)
}
HEAD = {"weight": (10, 64), "bias": (10,)}


def under(prefix, shapes):
    return {prefix + key: value for key, value in shapes.items()}


WHOLE = BODY | under("fc.", HEAD)


def arrays_of(shapes):
    """Returns arrays of these shapes, whose numbers are never read."""
    return {key: Array("", shape, "float32", None) for key, shape in shapes.items()}


def found_in(shapes, **options):
    return find_resnet(FILE, arrays_of(shapes), **options)


def error_of(shapes, **options):
    with pytest.raises(UserError) as error:
        found_in(shapes, **options)
    assert str(error.value).startswith("file.pth") and "\n" not in str(error.value)
    return str(error.value)


def test_nested_state_dicts(torch, tmp_path):
    """As trainers save them; each with its section, prefix and head."""
    state = {key: torch.zeros(shape) for key, shape in WHOLE.items()}
    body = {key: torch.zeros(shape) for key, shape in BODY.items()}
    head = {key: torch.zeros(shape) for key, shape in HEAD.items()}
    other = {"loss.weight": torch.ones(5)}
    for saved, expected in (
        ({"model": state, "optimizer": {0: head}, "epoch": 1}, ("model", "", "fc")),
        ({"model_state_dict": state, "loss": head}, ("model_state_dict", "", "fc")),
        ({"net": under("module.", state)}, ("net", "module.", "module.fc")),
        (
            {"state_dict": under("model.", state) | other},
            ("state_dict", "model.", "model.fc"),
        ),
        (
            {"state_dict": under("backbone.", body) | under("head.fc.", head)},
            ("state_dict", "backbone.", "head.fc"),
        ),
        ([state, {"lr": 0.1}], ("0", "", "fc")),
    ):
        torch.save(saved, tmp_path / "file.pth")
        arrays = read_arrays(tmp_path / "file.pth")
        found = find_resnet(FILE, arrays)
        section, prefix, head_name = expected
        assert (found.section, found.prefix) == (section, prefix)
        assert found.head == f"{section}.{head_name}" and found.classes == 10
        assert sorted(found.names.values()) == sorted(WHOLE)
        for key, name in found.names.items():
            assert arrays[key].shape == WHOLE[name]


@pytest.mark.parametrize(
    "prefix, head",
    [
        ("", "fc"),
        ("backbone.", "backbone.fc"),
        ("_orig_mod.", "_orig_mod.fc"),
        ("module._orig_mod.", "module._orig_mod.fc"),
        ("", "fc.1"),
        ("", "classifier"),
        ("", "last_linear"),
        ("encoder.", "classifier"),
        ("model.backbone.", "model.head.fc"),
    ],
)
def test_prefixes_and_heads(prefix, head):
    found = found_in(under(prefix, BODY) | under(f"{head}.", HEAD))
    assert (found.prefix, found.head, found.classes) == (prefix, head, 10)
    expected = {f"{prefix}{key}": key for key in BODY}
    expected |= {f"{head}.{key}": f"fc.{key}" for key in HEAD}
    assert found.names == expected


@pytest.mark.parametrize(
    "first, second",
    [
        ("student.module.backbone.", "teacher.backbone."),
        ("state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
        ("", "teacher."),
    ],
)
def test_two_resnets_have_to_be_chosen_from(first, second):
    shapes = under(first, WHOLE) | under(second, WHOLE)
    names = [first.rstrip(".") or ".", second.rstrip(".")]
    line = error_of(shapes)
    assert line.endswith(f"2 ResNets: choose one by --section: {', '.join(names)}")
    for start, name, other in ((first, names[0], names[1]), (second, *names[::-1])):
        # By the whole name, or by a part of it that the other does not have.
        for section in {name, *name.split(".")} - {*other.split(".")} - {""}:
            found = found_in(shapes, section=section)
            assert {*found.names} == {*under(start, WHOLE)}
            assert found.others == [other]
    line = error_of(shapes, section="nothing")
    assert "--section nothing: no ResNet is there; choose from " in line
    assert line.endswith(", ".join(names))


def test_ema_weights_are_offered_and_taken():
    shapes = under("state_dict_ema.", WHOLE) | under("state_dict.", WHOLE)
    found = found_in(shapes)
    assert found.others == ["state_dict_ema"] and "state_dict.fc.bias" in found.names
    found = found_in(shapes, section="state_dict_ema")
    assert found.head == "state_dict_ema.fc" and found.others == ["state_dict"]
    # Alone there is no choice.
    assert found_in(under("model_ema.module.", BODY)).others == []


@pytest.mark.parametrize(
    "head",
    [
        # Two layers, as MoCo v2's; one behind a normalization; other features.
        {"fc.0.weight": (20, 64), "fc.0.bias": (20,), "fc.2.weight": (10, 20)},
        {"head.norm.weight": (64,), "head.fc.weight": (10, 64)},
        {"fc.weight": (10, 63), "fc.bias": (10,)},
        {"projector.weight": (128, 64)},
        {},
    ],
)
def test_other_heads_are_not_used(head):
    found = found_in(BODY | head, num_classes=10)
    assert (found.head, found.classes) == ("", 0) and {*found.names} == {*BODY}


def test_the_head_is_chosen_by_its_classes():
    shapes = under("backbone.", WHOLE) | {"classifier.weight": (7, 64)}
    line = error_of(shapes)
    assert "several heads: choose one by --num_classes" in line
    assert line.endswith("backbone.fc (10), classifier (7)")
    for classes, head in ((7, "classifier"), (10, "backbone.fc"), (8, "")):
        assert found_in(shapes, num_classes=classes).head == head


def test_no_resnet():
    assert "it holds not one tensor" in error_of({})
    line = error_of({f"blocks.{i}.attn.qkv.weight": (12, 4) for i in range(9)})
    assert "no ResNet with torchvision's or timm's names" in line
    assert "blocks.4.attn.qkv.weight and 4 more" in line
