"""Models by name: listing, options, presets, and help for what is misspelt."""

import jax.numpy as jnp
import pytest

from vt_flax.errors import UserError
from vt_flax.models import create_model, list_models, model_options, model_task


def test_list_models():
    assert list_models("vt_resnet*") == [
        "vt_resnet101",
        "vt_resnet18",
        "vt_resnet34",
        "vt_resnet50",
    ]
    assert list_models("*fpn*50") == ["fpn_resnet50", "vt_fpn_resnet50"]
    assert list_models("nothing*") == []
    assert len(list_models()) == 41


def test_every_model_is_made_of_its_own_options():
    for name in list_models():
        options = model_options(name)
        assert options["dtype"] == "float32"
        model = create_model(name, **options)
        for option, value in options.items():
            if option not in ("preset", "dtype"):
                owner = model if hasattr(model, option) else model.vt
                assert getattr(owner, option) == value, (name, option)
        assert model == create_model(name)


def test_tasks():
    tasks = {name: model_task(name) for name in list_models()}
    assert set(tasks.values()) == {"classification", "segmentation"}
    for name, task in tasks.items():
        assert (task == "segmentation") == ("fpn_" in name), name
    with pytest.raises(UserError, match="did you mean .*fpn_resnet18"):
        model_task("fpn_resnet_18")


def test_options_of_the_pyramids():
    plain, tokens = (model_options(f"{name}_resnet50") for name in ("fpn", "vt_fpn"))
    assert {option: tokens[option] for option in plain} == plain
    assert {
        option: value for option, value in tokens.items() if option not in plain
    } == {
        "tokens": 8,
        "token_channels": 1024,
        "heads": 16,
        "feed_forward": "linear",
        "transformer_groups": 8,
        "group_channels": 16,
        "norm_placement": "tokens",
    }
    own = set(plain) - set(model_options("resnet50"))
    assert own == {"fpn_channels", "head_channels"}
    # Of a classifier's head.
    assert set(model_options("resnet50")) - set(plain) == {"dropout"}


def test_presets():
    first, fourth = (model_options("vt_resnet18", p) for p in ("v1", "v4"))
    assert model_options("vt_resnet18") == first
    differing = {o: (first[o], fourth[o]) for o in first if first[o] != fourth[o]}
    assert differing == {
        "preset": ("v1", "v4"),
        "tokens": (8, 16),
        "tokenizer": ("dynamic", "recurrent"),
        "position_encoding": (True, False),
        "feed_forward": ("linear", "mlp"),
        "transformer_groups": (8, 4),
    }
    for common, value in {
        "token_channels": 1024,
        "heads": 16,
        "first_tokenizer": "static",
        "group_channels": 64,
    }.items():
        assert first[common] == fourth[common] == value
    assert create_model("vt_resnet18", preset="v4").vt.tokens == 16


def test_options_stand_over_the_preset():
    model = create_model("vt_resnet34", preset="v4", tokens=32, num_classes=10)
    assert (model.vt.tokens, model.num_classes) == (32, 10)
    assert model.vt.feed_forward == "mlp"


@pytest.mark.parametrize(
    "dtype,expected",
    [("float16", jnp.float16), (jnp.bfloat16, jnp.bfloat16)],
)
def test_dtype_by_name_or_type(dtype, expected):
    model = create_model("vt_resnet18", dtype=dtype)
    assert jnp.dtype(model.dtype) == jnp.dtype(expected)


@pytest.mark.parametrize(
    "name,overrides,message",
    [
        ("vt_resnt18", {}, "'vt_resnt18' is not known; did you mean vt_resnet18"),
        ("transformer", {}, "'transformer' is not known"),
        ("vt_resnet18", {"token": 4}, "no option 'token'; did you mean tokens"),
        ("resnet18", {"tokens": 4}, "'resnet18' has no option 'tokens'"),
        ("resnet18", {"bottleneck": True}, "no option 'bottleneck'"),
        ("vt_resnet18", {"preset": "v5"}, "preset 'v5' is not known"),
        ("resnet18", {"preset": "v1"}, "'resnet18' has no presets"),
        ("resnet18", {"dtype": "bfloat"}, "did you mean bfloat16"),
        ("resnet18", {"dtype": 5}, "dtype 5 is not known; choose from bfloat16, flo"),
        ("resnet18", {"dtype": jnp.int32}, "int32.* is not known"),
        ("resnet18", {"stage_sizes": ["a", 1, 1, 1]}, "a list of int, not \\['a', 1"),
        ("resnet18", {"stage_sizes": [1, 1, 1, True]}, "stage_sizes must be a list of"),
        ("resnet18", {"stage_sizes": 3}, "stage_sizes must be a list of int, not 3"),
        ("resnet18", {"stem": "large"}, "'large' is not known.*imagenet, small"),
        ("resnet50", {"variant": "caffe"}, "'caffe' is not known.*msra, torchvision"),
        ("resnet18", {"dropout": 1.0}, "dropout=1.0"),
        ("resnet18", {"survival_probability": 0.0}, "survival_probability=0.0"),
        ("resnet18", {"num_classes": 0}, "num_classes=0"),
        ("resnet18", {"num_classes": 10**14}, "0: must be .* at most 1000000"),
        ("vt_resnet18", {"interaction": "grpah"}, "did you mean graph"),
        ("vt_resnet18", {"bn_group_size": -1}, "must be at least 0"),
        ("vt_resnet18", {"transformers": 5}, "transformers=5"),
        ("vt_resnet18", {"stage_sizes": [1, 1, 1, 0]}, "stage_sizes"),
        ("vt_resnet18", {"vt_channels": -4}, "vt_channels=-4"),
        ("vt_resnet18", {"projector": False, "project_last": True}, "project_last"),
        ("vt_resnet18", {"tokens": "many"}, "tokens must be int"),
        ("vt_resnet18", {"tokens": True}, "tokens must be int"),
        ("fpn_resnet18", {"fpn_channels": 0}, "fpn_channels=0: must be at least 1"),
        ("vt_fpn_resnet18", {"heads": 3}, "3 heads do not divide"),
        ("vt_fpn_resnet18", {"fpn_channels": 40}, "16 heads .* fpn_channels=40"),
        ("vt_fpn_resnet18", {"formulation": "fast"}, "'fast' is not known"),
        ("vt_fpn_resnet18", {"position_encoding": True}, "no option 'position_enc"),
    ],
)
def test_what_cannot_be_made(name, overrides, message):
    with pytest.raises(UserError, match=message) as raised:
        create_model(name, **overrides)
    assert "\n" not in str(raised.value)
