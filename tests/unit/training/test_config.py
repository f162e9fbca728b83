"""Configuration files, overrides from the command line, and their errors."""

import dataclasses
import json
import pathlib
import shlex

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from vt_flax.errors import UserError, differences
from vt_flax.models import create_model
from vt_flax.paper.published import PUBLISHED
from vt_flax.training.config import default_config, load_config, resolve
from vt_flax.training.run import model_for

CONFIGS = pathlib.Path(__file__).resolve().parents[3] / "configs"
QUICKSTART = f"{CONFIGS}/quickstart.py"
CIFAR10 = f"{CONFIGS}/cifar10.py"
IMAGENET = f"{CONFIGS}/imagenet.py"
ABLATIONS = f"{CONFIGS}/ablations.py"
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
HEAD = """
from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder, required_placeholder

def get_config():
  c = ConfigDict()
  for section in ("data", "eval", "model", "schedule", "segmentation"):
    c[section] = ConfigDict()
"""


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a file, whose `get_config` runs some lines."""

    def writer(*lines):
        path = tmp_path / "mine.py"
        path.write_text("\n  ".join([HEAD.rstrip(), *lines, "return c"]) + "\n")
        return str(path)

    return writer


# The files that come with the package.


@pytest.mark.parametrize(
    "path",
    [
        QUICKSTART,
        IMAGENET,
        f"{IMAGENET}:resnet101",
        f"{IMAGENET}:vt_resnet50,v4",
        CIFAR10,
        f"{CIFAR10}:resnet18,cpu",
        ABLATIONS,
    ],
)
def test_shipped_files(path):
    config = load_config(path)
    assert config.is_locked
    assert model_for(config, 10).num_classes == 10
    # What is written to the workdir reads back as the same configuration.
    again = resolve(ConfigDict(json.loads(json.dumps(config.to_dict()))))
    assert again.to_dict() == config.to_dict()


def test_imagenet_has_the_constants_of_the_paper():
    config = load_config(IMAGENET).to_dict()
    expected = {
        "model": {
            "name": "vt_resnet18",
            "preset": "v1",
            "bn_group_size": 0,
            "survival_probability": 0.9,
            "dropout": 0.2,
        },
        "optimizer": {
            "decay": 0.9,
            "momentum": 0.9,
            "epsilon": 1e-3,
            "weight_decay": 1e-5,
        },
        "schedule": {
            "name": "exponential",
            "warmup": "5 epochs",
            "warmup_learning_rate": 0.01,
            "learning_rate": 0.16,
            "decay_factor": 0.9875,
            "decay_every": "1 epochs",
        },
        "loss": {"label_smoothing": 0.1},
        "distillation": {"teacher": "", "weight": 0.8, "temperature": 1.0},
        "ema": {"decay": 0.99985},
        "data": {
            "name": "imagenet2012",
            "image_size": 224,
            "eval_resize": 256,
            "train_crop": "random_resized",
        },
    }
    assert (config["duration"], config["batch_size"]) == ("400 epochs", 2048)
    assert config["optimizer"]["name"].startswith("rmsprop")
    for section, values in expected.items():
        assert {key: config[section][key] for key in values} == values


def test_ablations_have_the_constants_of_the_paper():
    for row in (*ABLATION_ROWS, "v1", "no_position", "resnet"):
        config = load_config(f"{ABLATIONS}:{row},34")
        assert config.duration == "90 epochs" and config.batch_size == 256
        optimizer = config.optimizer
        assert (optimizer.name, optimizer.momentum) == ("sgd", 0.9)
        assert (optimizer.nesterov, optimizer.clip_norm) == (False, 0)
        assert optimizer.weight_decay == 4e-5
        schedule = config.schedule
        assert (schedule.name, schedule.learning_rate) == ("step", 0.1)
        assert schedule.decay_factor == 0.1 and schedule.warmup.startswith("0 ")
        # Of 90 epochs; a boundary at their end would change nothing.
        assert schedule.boundaries == ["30 epochs", "60 epochs"]
        assert config.loss.label_smoothing == config.ema.decay == 0
        assert config.model.dropout == 0 and config.model.survival_probability == 1
        assert config.model.name == f"{'' if row == 'resnet' else 'vt_'}resnet34"


@pytest.mark.parametrize("depth", [18, 34])
def test_ablations_train_the_models_that_are_counted(depth):
    def fields(model):
        return {
            field.name: getattr(model, field.name)
            for field in dataclasses.fields(model)
            # Of the recipe, and not of the architecture that is counted.
            if field.name not in ("parent", "dtype")
        }

    labels = {row: f"VT-R{depth} {label}" for row, label in ABLATION_ROWS.items()}
    for row, label in {**labels, "resnet": f"ResNet-{depth}"}.items():
        (published,) = [p for p in PUBLISHED if p.row == label]
        config = load_config(f"{ABLATIONS}:{row},{depth}")
        expected = create_model(published.model, **published.overrides)
        assert fields(model_for(config, 1000)) == fields(expected), row


def test_a_variant_changes_its_key_alone():
    plain = load_config(CIFAR10).to_dict()
    for variant, line in {
        "static": "model.tokenizer: 'dynamic' -> 'static'",
        "no_position": "model.position_encoding: True -> False",
        "no_projector": "model.projector: True -> False",
        "no_interaction": "model.interaction: 'transformer' -> 'none'",
    }.items():
        other = load_config(f"{CIFAR10}:{variant}").to_dict()
        assert differences(plain, other) == [line]


def test_files_of_the_current_folder_come_before_the_shipped_ones(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/cifar10.py") == load_config(CIFAR10)
    (tmp_path / "configs").mkdir()
    mine = HEAD + "  c.seed = 7\n  return c\n"
    (tmp_path / "configs" / "cifar10.py").write_text(mine)
    assert load_config("configs/cifar10.py").seed == 7
    with pytest.raises(UserError, match=r"no such file.*configs/quickstart\.py"):
        load_config("configs/nowhere.py")


# Overrides.


def by_config_flags(path, overrides):
    """Returns the values that ml_collections' flags make of a file, by name."""
    values = flags.FlagValues()
    argv = ["", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    assert values(argv) == [""]
    return leaves(values["config"].value)


def leaves(config):
    """Returns values by name, lists for tuples."""
    found = {}
    for section, value in config.to_dict().items():
        inner = value if isinstance(value, dict) else {"": value}
        found |= {f"{section}.{key}".rstrip("."): v for key, v in inner.items()}
    return json.loads(json.dumps(found))


TWICE = ["c.batch_size = 256", "c.eval.batch_size = c.get_ref('batch_size') * 2"]
ONE_WAY = ["c.batch_size = 256", "c.eval.batch_size = c.get_oneway_ref('batch_size')"]
FLOAT_RATE = [
    "c.batch_size, c.schedule.learning_rate = 256, 0.1",
    "c.schedule.learning_rate = c.get_ref('batch_size').to_float() * 0.1 / 256",
]
CHAIN = [
    "c.model.width = 8",
    "c.data.image_size = c.model.get_ref('width') * 4",
    "c.data.eval_resize = c.data.get_ref('image_size') + c.model.get_ref('width')",
]
EMPTY = [
    "c.batch_size = placeholder(int)",
    "c.eval.batch_size = c.get_ref('batch_size') * 2",
    "c.data.name = placeholder(str)",
    "c.data.mean = placeholder(tuple)",
]
TUPLE = ["c.model.stage_sizes = (1, 1, 1, 2)"]
PLAIN = [
    "c.seed, c.duration, c.schedule.learning_rate = 1, '9 epochs', 0.5",
    "c.data.flip, c.data.data_dir = False, 'somewhere'",
]


@pytest.mark.parametrize(
    "lines,overrides,expected",
    [
        (TWICE, "", {"batch_size": 256, "eval.batch_size": 512}),
        (TWICE, "--c.batch_size=32", {"batch_size": 32, "eval.batch_size": 64}),
        (ONE_WAY, "--c.eval.batch_size=10", {"batch_size": 256, "eval.batch_size": 10}),
        (
            FLOAT_RATE,
            "--c.schedule.learning_rate=0.7",
            {"schedule.learning_rate": 0.7, "batch_size": 256},
        ),
        (CHAIN, "--c.model.width=16", {"data.image_size": 64, "data.eval_resize": 80}),
        (CHAIN, "--c.data.image_size=5", {"model.width": 8, "data.eval_resize": 13}),
        (
            EMPTY,
            "--c.batch_size=8 --c.data.name=digits --c.data.mean=0,0.5,1",
            {"eval.batch_size": 16, "data.name": "digits", "data.mean": [0, 0.5, 1]},
        ),
        (TUPLE, "--c.model.stage_sizes=[1,2,1,1]", {"model.stage_sizes": [1, 2, 1, 1]}),
        (PLAIN, "--noc.data.flip", {"data.flip": False}),
        (PLAIN, "--c.data.flip", {"data.flip": True}),
        (PLAIN, "--c.seed -2", {"seed": -2}),
        (PLAIN, "--c.seed=4 --c.seed=5", {"seed": 5}),
        (PLAIN, "--c.schedule.learning_rate=2", {"schedule.learning_rate": 2.0}),
        (PLAIN, "'--c.data.data_dir=a=b c'", {"data.data_dir": "a=b c"}),
    ],
)
def test_overrides_equal_those_of_config_flags(write, lines, overrides, expected):
    path = write(*lines)
    words = shlex.split(overrides.replace("c.", "config."))
    theirs = by_config_flags(path, words)
    config = load_config(path, words)
    ours = leaves(config)
    assert expected.items() <= theirs.items()
    assert theirs.items() <= ours.items()
    # The types are the keys', and not those of the file's references.
    defaults = leaves(resolve(ConfigDict()))
    assert all(type(ours[key]) is type(defaults[key]) for key in theirs)
    # What is resolved holds no references, and is resolved to itself.
    assert resolve(ConfigDict(config.to_dict())) == config


@pytest.mark.parametrize("value", ["[512,96]", "(512,96)", "512,96", "[512, 96]"])
def test_lists(value):
    words = [f"--config.segmentation.crop={value}"]
    assert resolve(ConfigDict(), words).segmentation.crop == [512, 96]
    words = ["--config.segmentation.crop", value, "--config.data.mean[0]=0.25"]
    config = resolve(ConfigDict(), words)
    assert (config.segmentation.crop, config.data.mean[0]) == ([512, 96], 0.25)


def test_a_required_placeholder_takes_the_value_of_the_command_line(write):
    path = write(
        "c.batch_size = required_placeholder(int)",
        "c.eval.batch_size = c.get_ref('batch_size')",
        "c.model.name = required_placeholder(str)",
    )
    words = ["--config.model.name", "resnet34", "--config.batch_size=48"]
    config = load_config(path, words)
    assert config.batch_size == config.eval.batch_size == 48
    assert config.model.name == "resnet34" and "tokens" not in config.model
    with pytest.raises(UserError, match=r"config\.batch_size \(int\).*=VALUE"):
        load_config(path, words[:2])


def test_a_learning_rate_that_refers_to_the_batch_size_takes_any_value(write):
    """config_flags reads such a value as an int, and rejects even that."""
    path = write(
        "c.batch_size = 512",
        "c.schedule.learning_rate = c.get_ref('batch_size') * 0.1 / 256",
    )
    assert load_config(path).schedule.learning_rate == 0.2
    words = ["--config.schedule.learning_rate=0.7"]
    assert load_config(path, words).schedule.learning_rate == 0.7


def test_resolve_leaves_its_argument_as_it_was():
    written = default_config()
    written.eval.batch_size = written.get_ref("batch_size") * 2
    for batch in (16, 8):
        config = resolve(written, [f"--config.batch_size={batch}"])
        assert config.eval.batch_size == 2 * batch
    assert written.eval.batch_size == 512
    plain = resolve(ConfigDict()).to_dict()
    assert plain.pop("model")["name"] == "vt_resnet18"
    assert plain.items() <= default_config().to_dict().items()


def test_model_and_preset_bring_their_options(write):
    path = write("c.model.name = 'vt_resnet18'", "c.model.width = 16")
    model = load_config(path, ["--config.model.name=resnet50"]).model
    assert (model.stage_sizes, model.width) == ([3, 4, 6, 3], 16)
    assert "tokens" not in model and "preset" not in model
    first = load_config(path).model
    second = load_config(path, ["--config.model.preset=v4"]).model
    assert (first.preset, first.tokens, first.tokenizer) == ("v1", 8, "dynamic")
    assert (second.preset, second.tokens, second.tokenizer) == ("v4", 16, "recurrent")
    assert first.width == second.width == 16
    # What is set beats the preset.
    model = load_config(path, ["--config.model.preset=v4", "--config.model.tokens=64"])
    assert model.model.tokens == 64


# Errors.


@pytest.mark.parametrize(
    "line,overrides,message",
    [
        # Keys, of the file and the command line.
        ("c.bacth_size = 3", "", "bacth_size is no key .*did you mean batch_size"),
        ("c.model.widht = 8", "", r"model\.widht is no .*did you mean model\.width"),
        ("c.model.heads = 4", "--c.model.name=resnet18", "no key .* of resnet18"),
        ("c.model.preset = 'v4'", "--c.model.name=resnet18", "has no presets"),
        ("c.seed = 3", "--c.data.men=[1]", "data.men is no key .*did you mean"),
        ("c.seed = 3", "--noc.data.flp", "data.flp is no key .*did you mean"),
        ("c.seed = 3", "--c.data=digits", "config.data is a section: .*data.name"),
        ("c.model.name = 'resnet19'", "", "'resnet19' is not known.*did you mean"),
        ("c.seed = 3", "--c.model.preset=v5", "preset 'v5' is not known"),
        # Types.
        ("c.batch_size = 'many'", "", "batch_size must be int, not 'many'"),
        ("c.batch_size = '64'", "--c.batch_size=32", "must be int, not '64'"),
        ("c.data.flip = 1", "", r"data\.flip must be bool, not 1"),
        ("c.data.mean = (0, 0, 'a')", "", r"data.mean\[2\] must be float, not 'a'"),
        ("c.seed = 3", "--c.seed=1e3", "flag --config.seed=1e3: invalid literal"),
        ("c.seed = 3", "--c.seed", "bad override: .*seed"),
        ("c.seed = 3", "--c.data.flip=maybe", "data.flip=maybe"),
        ("c.seed = 3", "--c.data.mean=0.5", "data.mean=0.5: .*not a list"),
        ("c.seed = 3", "--c.data.mean[3]=1", "bad override .*out of range"),
        # References and placeholders.
        ("c.data.data_dir = None", "", r"no value for config\.data\.data_dir \(str\)"),
        (
            "c.seed = 3; c.batch_size = 24 // c.get_ref('seed')",
            "--c.seed=0",
            "config.batch_size: ZeroDivisionError: ",
        ),
        ("c.batch_size = c.get_ref('seed')", "", r"KeyError: 'seed' \(line 9\)$"),
        (
            "c.init_from = 'v4'; c.model.preset = c.get_ref('init_from')",
            "--c.init_from=v1",
            "config.model.preset v1: must be set by --config.model.preset=v1",
        ),
        # Other arguments.
        ("c.seed = 3", "--batch_size=3", "unexpected argument '--batch_size=3'"),
        ("c.seed = 3", "--c.data.flip no", "unexpected argument 'no'"),
    ],
)
def test_bad_keys_and_values(write, line, overrides, message):
    words = shlex.split(overrides.replace("c.", "config."))
    with pytest.raises(UserError, match=message) as error:
        load_config(write(line), words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("def get_config(:\n", "mine.py: SyntaxError"),
        ("import no_such_module\n", "mine.py: .*no_such_module"),
        ("x = 1\n", "must define get_config"),
        ("def get_config(arg):\n  pass\n", "TypeError: .*missing 1 required"),
        ("def get_config():\n\n  return 1 / 0\n", r"ZeroDivisionError: .*\(line 3\)$"),
        ("def get_config():\n  return {}\n", "which returns a ConfigDict"),
    ],
)
def test_broken_files(tmp_path, content, message):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_config(str(path))


@pytest.mark.parametrize(
    "path, message",
    [
        (f"{ABLATIONS}:recurent", "'recurent' is not known: choose from .*recurrent"),
        (f"{ABLATIONS}:static,50", "depth '50': choose 18 or 34"),
        (f"{CIFAR10}:resnet18,static", "static is a variant of VT-ResNets"),
        (f"{IMAGENET}:vt_resnet18,v5", "'v5' is not known.*did you mean"),
        (f"{QUICKSTART}:fast", "quickstart.py:fast: TypeError"),
    ],
)
def test_bad_arguments_of_shipped_files(path, message):
    with pytest.raises(UserError, match=message):
        load_config(path)
