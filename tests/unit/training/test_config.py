"""Configuration files, overrides from the command line, and their error messages."""

import ast
import dataclasses
import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from vt_flax.errors import UserError, differences
from vt_flax.models import create_model
from vt_flax.paper.published import PUBLISHED
from vt_flax.training.config import (
    default_config,
    load_config,
    resolve,
)
from vt_flax.training.run import model_for

CONFIGS = pathlib.Path(__file__).resolve().parents[3] / "configs"
QUICKSTART = f"{CONFIGS}/quickstart.py"
CIFAR10 = f"{CONFIGS}/cifar10.py"
IMAGENET = f"{CONFIGS}/imagenet.py"
ABLATIONS = f"{CONFIGS}/ablations.py"
DEPTHS = (18, 34, 50, 101)
MODELS = [f"{prefix}resnet{depth}" for prefix in ("", "vt_") for depth in DEPTHS]
VARIANTS = ["static", "no_position", "no_projector", "no_interaction"]
# By ARG of ablations.py: the row of the paper's tables that it stands for.
ABLATION_ROWS = {
    "pooling": "tokenizer: pooling",
    "clustering": "tokenizer: clustering",
    "recurrent": "tokenizer: filter + recurrent (the model)",
    "static": "tokenizer: without recurrent",
    "no_interaction": "interaction: none",
    "graph": "interaction: graph convolution",
    "transformer": "interaction: transformer (the model)",
    "tokens16": "tokens: 16",
    "tokens32": "tokens: 32",
    "tokens64": "tokens: 64",
    "no_projector": "without projector",
}
ALL = [
    QUICKSTART,
    *(f"{IMAGENET}:{model}" for model in MODELS),
    *(f"{IMAGENET}:vt_resnet{depth},v4" for depth in DEPTHS),
    *(f"{CIFAR10}:{model}{cpu}" for model in MODELS for cpu in ("", ",cpu")),
    *(f"{CIFAR10}:{variant}" for variant in VARIANTS),
    *(f"{CIFAR10}:vt_resnet34,cpu,{variant}" for variant in VARIANTS),
    *(
        f"{ABLATIONS}:{row}{depth}"
        for row in (*ABLATION_ROWS, "v1", "no_position", "resnet")
        for depth in ("", ",18", ",34")
    ),
    IMAGENET,
    CIFAR10,
    ABLATIONS,
]


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a configuration file from its last lines."""

    def writer(*lines):
        path = tmp_path / "mine.py"
        body = ["from ml_collections import ConfigDict", *lines]
        path.write_text("\n".join(body) + "\n")
        return str(path)

    return writer


def get_config(*lines):
    """Returns the lines of a file whose `get_config` runs some lines on `c`."""
    return (
        "def get_config():",
        "  c = ConfigDict({'model': {}, 'data': {}})",
        *(f"  {line}" for line in lines),
        "  return c",
    )


# The files.


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.split("/")[-1])
def test_every_documented_file_and_argument_resolves(path):
    config = load_config(path)
    assert set(config) == set(default_config())
    assert config.is_locked
    assert model_for(config, 10).num_classes == 10
    # What is written to the workdir reads back as the same configuration.
    again = resolve(ConfigDict(json.loads(json.dumps(config.to_dict()))))
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("name", [path.name for path in CONFIGS.glob("*.py")])
def test_every_file_opens_with_its_command(name):
    text = ast.get_docstring(ast.parse((CONFIGS / name).read_text()))
    assert f"vt_flax train --config configs/{name}" in text


def test_imagenet_has_the_paper_s_constants():
    config = load_config(IMAGENET)
    assert config.model.name == "vt_resnet18" and config.model.preset == "v1"
    assert config.duration == "400 epochs"
    assert config.batch_size == 2048
    assert config.optimizer.name.startswith("rmsprop")
    assert config.optimizer.decay == 0.9
    assert config.optimizer.momentum == 0.9
    assert config.optimizer.epsilon == 1e-3
    assert config.optimizer.weight_decay == 1e-5
    assert config.schedule.name == "exponential"
    assert config.schedule.warmup == "5 epochs"
    assert config.schedule.warmup_learning_rate == 0.01
    assert config.schedule.learning_rate == 0.16
    assert config.schedule.decay_factor == 0.9875
    assert config.schedule.decay_every == "1 epochs"
    assert config.model.bn_group_size == 0
    assert config.model.survival_probability == 0.9
    assert config.model.dropout == 0.2
    assert config.loss.label_smoothing == 0.1
    assert config.distillation.to_dict() == {
        "teacher": "",
        "weight": 0.8,
        "temperature": 1.0,
    }
    assert config.ema.decay == 0.99985
    assert config.data.name == "imagenet2012"
    assert config.data.image_size == 224
    assert config.data.eval_resize == 256
    assert config.data.train_crop == "random_resized"


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("row", [*ABLATION_ROWS, "v1", "no_position", "resnet"])
def test_ablations_have_the_paper_s_constants(row, depth):
    config = load_config(f"{ABLATIONS}:{row},{depth}")
    assert config.duration == "90 epochs"
    assert config.batch_size == 256
    assert config.optimizer.name == "sgd"
    assert config.optimizer.momentum == 0.9
    assert config.optimizer.nesterov is False
    assert config.optimizer.weight_decay == 4e-5
    assert config.optimizer.clip_norm == 0
    assert config.schedule.name == "step"
    assert config.schedule.learning_rate == 0.1
    assert config.schedule.decay_factor == 0.1
    assert config.schedule.warmup.startswith("0 ")
    # Of 90 epochs; a boundary at their end would change nothing.
    assert config.schedule.boundaries == ["30 epochs", "60 epochs"]
    assert config.loss.label_smoothing == 0
    assert config.model.dropout == 0
    assert config.model.survival_probability == 1
    assert config.ema.decay == 0
    prefix = "" if row == "resnet" else "vt_"
    assert config.model.name == f"{prefix}resnet{depth}"


def fields(model):
    return {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        # Of the recipe, and not of the architecture that is counted.
        if field.name not in ("parent", "dtype")
    }


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_ablations_train_the_models_that_are_counted(row, depth):
    label = f"VT-R{depth} {ABLATION_ROWS[row]}"
    (published,) = [p for p in PUBLISHED if p.row == label]
    config = load_config(f"{ABLATIONS}:{row},{depth}")
    expected = create_model(published.model, **published.overrides)
    assert fields(model_for(config, 1000)) == fields(expected)


def test_the_plain_ablation_is_the_resnet_that_is_counted():
    for depth in (18, 34):
        (published,) = [p for p in PUBLISHED if p.row == f"ResNet-{depth}"]
        expected = create_model(published.model, **published.overrides)
        config = load_config(f"{ABLATIONS}:resnet,{depth}")
        assert fields(model_for(config, 1000)) == fields(expected)


def test_variants_change_what_they_say():
    """And nothing else: the rest is that of the file without a variant."""
    plain = load_config(CIFAR10).to_dict()
    for variant, line in {
        "static": "model.tokenizer: 'dynamic' -> 'static'",
        "no_position": "model.position_encoding: True -> False",
        "no_projector": "model.projector: True -> False",
        "no_interaction": "model.interaction: 'transformer' -> 'none'",
    }.items():
        other = load_config(f"{CIFAR10}:{variant}").to_dict()
        assert differences(plain, other) == [line]


# Overrides.


@pytest.mark.parametrize(
    "overrides,key,value",
    [
        (["--config.batch_size=64"], "batch_size", 64),
        (["--config.batch_size", "64"], "batch_size", 64),
        (["-config.batch_size=64"], "batch_size", 64),
        (["--config.schedule.learning_rate=0.25"], "schedule.learning_rate", 0.25),
        (["--config.schedule.learning_rate=1"], "schedule.learning_rate", 1.0),
        (["--config.data.flip=False"], "data.flip", False),
        (["--noconfig.data.flip"], "data.flip", False),
        (["--config.ema.ramp=0"], "ema.ramp", False),
        (["--config.data.name=folder:/a=b c"], "data.name", "folder:/a=b c"),
        (["--config.data.mean=[0.1,0.2,0.3]"], "data.mean", [0.1, 0.2, 0.3]),
        (["--config.model.stage_sizes=[1,1,1,1]"], "model.stage_sizes", [1, 1, 1, 1]),
        (
            ["--config.schedule.boundaries=['1 epochs','9 %']"],
            "schedule.boundaries",
            ["1 epochs", "9 %"],
        ),
        (["--config.schedule.boundaries=[]"], "schedule.boundaries", []),
        (["--config.model.num_classes=7"], "model.num_classes", 7),
    ],
)
def test_overrides(overrides, key, value):
    plain = load_config(CIFAR10).to_dict()
    config = load_config(CIFAR10, overrides)
    found = config.to_dict()
    for part in key.split("."):
        found = found[part]
    assert found == value and type(found) is type(value)
    # And nothing else changes.
    assert all(
        line.startswith(f"{key}: ") for line in differences(plain, config.to_dict())
    )
    # A second reading starts from the file again.
    assert load_config(CIFAR10).to_dict() == plain


def test_an_overridden_list_reaches_the_model():
    config = load_config(CIFAR10, ["--config.model.stage_sizes=[1,2,1,3]"])
    assert tuple(model_for(config, 10).stage_sizes) == (1, 2, 1, 3)


def test_the_model_s_name_brings_its_own_options(write):
    path = write(*get_config("c.model.name = 'vt_resnet18'", "c.model.width = 16"))
    config = load_config(path, ["--config.model.name=resnet50"])
    assert config.model.name == "resnet50"
    assert config.model.stage_sizes == [3, 4, 6, 3]
    assert config.model.width == 16
    assert "tokens" not in config.model and "preset" not in config.model
    config = load_config(path, ["--config.model.name", "vt_resnet34"])
    assert config.model.stage_sizes == [3, 4, 6, 3] and config.model.tokens == 8


def test_the_preset_brings_its_own_options(write):
    path = write(*get_config("c.model.transformers = 1"))
    first = load_config(path).model
    second = load_config(path, ["--config.model.preset=v4"]).model
    assert (first.preset, first.tokens, first.tokenizer) == ("v1", 8, "dynamic")
    assert first.feed_forward == "linear" and first.position_encoding
    assert (second.preset, second.tokens, second.tokenizer) == ("v4", 16, "recurrent")
    assert second.feed_forward == "mlp" and not second.position_encoding
    assert first.transformers == second.transformers == 1


def test_what_is_set_beats_the_preset(write):
    path = write(*get_config("c.model.preset = 'v4'", "c.model.tokens = 32"))
    config = load_config(path)
    assert (config.model.tokens, config.model.tokenizer) == (32, "recurrent")
    config = load_config(path, ["--config.model.tokens=64"])
    assert config.model.tokens == 64
    config = load_config(path, ["--config.model.preset=v1"])
    assert (config.model.tokens, config.model.tokenizer) == (32, "dynamic")


# Errors of the command line.


@pytest.mark.parametrize(
    "override,key,hint",
    [
        ("--config.bacth_size=3", "bacth_size", "batch_size"),
        ("--config.data.men=[1]", "data.men", "data.mean"),
        (
            "--config.schedule.learning_rte=3",
            "schedule.learning_rte",
            "schedule.learning_rate",
        ),
        ("--config.datas.flip=0", "datas.flip", "data.flip"),
        ("--noconfig.data.flp", "data.flp", "data.flip"),
        ("--config.model.tokns=3", "model.tokns", "model.tokens"),
    ],
)
def test_an_unknown_flag_names_the_nearest_key(override, key, hint):
    message = rf"config\.{key} is no key .*did you mean .*{hint}"
    with pytest.raises(UserError, match=message):
        load_config(CIFAR10, [override])


@pytest.mark.parametrize(
    "override",
    [
        "--config.batch_size=many",
        "--config.batch_size=",
        "--config.batch_size many",
        "--config.batch_size=6.5",
        "--config.schedule.learning_rate=fast",
        "--config.data.flip=maybe",
        "--config.data.mean=0.5",
        "--config.data.mean=[0.5",
        "--config.model.stage_sizes=deep",
    ],
)
def test_a_flag_of_the_wrong_type_is_named_with_its_value(override):
    named = re.escape(override.replace(" ", "="))
    with pytest.raises(UserError, match=f"^bad override: flag {named}: ") as error:
        load_config(CIFAR10, override.split(" "))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["--batch_size=3", "--confg.batch_size=3", "x"])
def test_an_unknown_argument_is_named(override):
    with pytest.raises(UserError, match=override.lstrip("-").split("=")[0]):
        load_config(CIFAR10, [override])


@pytest.mark.parametrize(
    "override,message",
    [
        ("--config.model.name=vt_resnet19", "'vt_resnet19' is not.*vt_resnet18"),
        ("--config.model.preset=v5", "preset 'v5' is not known"),
    ],
)
def test_an_unknown_model_or_preset(override, message):
    with pytest.raises(UserError, match=message):
        load_config(CIFAR10, [override])


@pytest.mark.parametrize(
    "line,message",
    [
        (
            ["c.model.heads = 4", "c.model.tokens = 2"],
            r"model\.heads is no key of the ",
        ),
        (["c.model.widht = 8"], r"model\.widht is no .*did you mean model\.width"),
    ],
)
def test_a_key_of_the_file_that_another_model_lacks(write, line, message):
    path = write(*get_config(*line))
    with pytest.raises(UserError, match=message) as error:
        load_config(path, ["--config.model.name=resnet18"])
    assert "configuration of resnet18" in str(error.value)


def test_a_preset_that_another_model_lacks(write):
    path = write(*get_config("c.model.preset = 'v4'"))
    with pytest.raises(UserError, match="'resnet18' has no presets"):
        load_config(path, ["--config.model.name=resnet18"])


def test_a_flag_without_a_value():
    with pytest.raises(UserError, match="batch_size"):
        load_config(CIFAR10, ["--config.batch_size"])


def test_a_section_is_no_value():
    with pytest.raises(UserError, match=r"config\.data\b"):
        load_config(CIFAR10, ["--config.data=digits"])


# Errors of the file.


@pytest.mark.parametrize(
    "line,message",
    [
        ("c.bacth_size = 3", r"config\.bacth_size is no key .*did you mean batch_size"),
        ("c.data.flp = True", r"config\.data\.flp is no key .*did you mean data.flip"),
        ("c.model.tokns = 3", r"model\.tokns is no key .*did you mean model.tokens"),
        ("c.batch_size = 'many'", r"config\.batch_size must be int, not 'many'"),
        ("c.batch_size = 2.5", r"config\.batch_size must be int, not 2.5"),
        ("c.batch_size = True", r"config\.batch_size must be int, not True"),
        ("c.duration = 90", r"config\.duration must be str, not 90"),
        ("c.data.flip = 1", r"config\.data\.flip must be bool, not 1"),
        ("c.data.data_dir = None", r"no value for config\.data\.data_dir \(str\)"),
        ("c.data.mean = 0.5", r"config\.data\.mean must be list, not 0.5"),
        ("c = ConfigDict({'data': 'digits'})", r"config\.data is a section"),
        ("c.batch_size = ConfigDict()", r"config\.batch_size must be int, not {}"),
        ("c = ConfigDict({'model': 'resnet18'})", r"config\.model is a section"),
        ("c.model.name = 18", r"model\.name"),
        ("c.model.preset = 4", r"model\.preset"),
        ("c.model.name = 'resnet19'", "'resnet19' is not known.*did you mean resnet"),
    ],
)
def test_a_bad_line_of_a_file(write, line, message):
    with pytest.raises(UserError, match=message):
        load_config(write(*get_config(line)))


def test_an_override_does_not_hide_a_wrong_type_in_the_file(write):
    path = write(*get_config("c.batch_size = '64'"))
    with pytest.raises(UserError, match="batch_size must be int, not '64'"):
        load_config(path, ["--config.batch_size=32"])


def test_a_whole_number_may_stand_for_a_float(write):
    path = write(
        *get_config(
            "c.schedule = ConfigDict({'learning_rate': 1})", "c.loss = ConfigDict()"
        )
    )
    rate = load_config(path).schedule.learning_rate
    assert rate == 1.0 and isinstance(rate, float)


@pytest.mark.parametrize(
    "path,message",
    [
        (f"{ABLATIONS}:recurent", "'recurent' is not known: choose from .*recurrent"),
        (f"{ABLATIONS}:static,50", "depth '50': choose 18 or 34"),
        (f"{CIFAR10}:resnet18,static", "static is a variant of VT-ResNets"),
        (f"{CIFAR10}:resnet18,resnet34", "one model at a time"),
        (f"{CIFAR10}:resnet19", "'resnet19' is not known.*did you mean"),
        (f"{IMAGENET}:vt_resnet19", "'vt_resnet19' is not known.*did you mean"),
        (f"{IMAGENET}:vt_resnet18,v5", "'v5' is not known.*did you mean"),
        (f"{IMAGENET}:resnet18,v4", "'resnet18' has no presets"),
        (
            f"{QUICKSTART}:fast",
            "quickstart.py:fast: TypeError: get_config.. takes 0 pos",
        ),
    ],
)
def test_a_bad_argument_of_a_file(path, message):
    with pytest.raises(UserError, match=message):
        load_config(path)


# Beside the files.


def test_an_empty_configuration_is_the_default():
    config = resolve(ConfigDict())
    plain = default_config().to_dict()
    plain.pop("model")
    found = config.to_dict()
    assert found.pop("model")["name"] == "vt_resnet18"
    assert found == plain


def test_the_resolved_configuration_is_locked():
    config = resolve(ConfigDict())
    with pytest.raises(AttributeError):
        config.foo = 1
    with pytest.raises(AttributeError):
        config.data.foo = 1


def test_differences_by_hand():
    old = {"a": 1, "b": {"c": [1], "d": 2}, "e": "x"}
    new = {"a": 1, "b": {"c": [2], "d": 2}, "f": 0.5}
    assert differences(old, new) == [
        "b.c: [1] -> [2]",
        "e: 'x' -> None",
        "f: None -> 0.5",
    ]
    assert differences(old, old) == []
