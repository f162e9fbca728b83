"""References, placeholders and tuples of files, against ml_collections' own flags."""

import json
import shlex

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from vt_flax.errors import UserError
from vt_flax.training.config import default_config, load_config, resolve

HEAD = """
from ml_collections import ConfigDict, FieldReference, FrozenConfigDict
from ml_collections.config_dict import placeholder, required_placeholder

def get_config():
  c = ConfigDict()
  for section in ("data", "eval", "model", "optimizer", "schedule", "segmentation"):
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


def arguments(text):
    """Returns a command line's arguments, in which `c` stands for `config`."""
    return shlex.split(text.replace("c.", "config."))


TWICE = ["c.batch_size = 256", "c.eval.batch_size = c.get_ref('batch_size') * 2"]
SHARED = ["c.batch_size = 256", "c.eval.batch_size = c.get_ref('batch_size')"]
ONE_WAY = ["c.batch_size = 256", "c.eval.batch_size = c.get_oneway_ref('batch_size')"]
RATE = [
    "c.batch_size = 512",
    "c.schedule.learning_rate = c.get_ref('batch_size') * 0.1 / 256",
]
FLOAT_RATE = [
    "c.batch_size, c.schedule.learning_rate = 256, 0.1",
    "c.schedule.learning_rate = c.get_ref('batch_size').to_float() * 0.1 / 256",
]
CHAIN = [
    "c.model.width = 8",
    "c.data.image_size = c.model.get_ref('width') * 4",
    "c.data.eval_resize = c.data.get_ref('image_size') + c.model.get_ref('width')",
]
WORDS = ["c.seed = 3", "c.duration = c.get_ref('seed').to_str() + ' epochs'"]
BOTH = ["c.data.flip = True", "c.optimizer.nesterov = c.data.get_ref('flip') & True"]
FIELD = [
    "size = FieldReference(96)",
    "c.segmentation.short_side = c.data.image_size = size",
    "c.data.eval_resize = 8192 // size",
]
SECTION = [
    "c.eval = c.checkpoint = ConfigDict({'every': '2 epochs'})",
    "c.log = ConfigDict({'every': '9 steps'})",
]
EMPTY = [
    "c.batch_size = placeholder(int)",
    "c.eval.batch_size = c.get_ref('batch_size') * 2",
    "c.data.name = placeholder(str)",
    "c.data.mean = placeholder(tuple)",
]
TUPLE = ["c.model.stage_sizes = (1, 1, 1, 2)"]
LIST = ["c.segmentation.eval_scales = [0.5, 1.0]"]
PLAIN = [
    "c.seed, c.duration, c.schedule.learning_rate = 1, '9 epochs', 0.5",
    "c.data.flip, c.data.data_dir = False, 'somewhere'",
]


@pytest.mark.parametrize(
    "lines,overrides,expected",
    [
        (TWICE, "", {"batch_size": 256, "eval.batch_size": 512}),
        (TWICE, "--c.batch_size=32", {"batch_size": 32, "eval.batch_size": 64}),
        (TWICE, "--c.eval.batch_size=10", {"batch_size": 256, "eval.batch_size": 10}),
        (
            TWICE,
            "--c.eval.batch_size=10 --c.batch_size=32",
            {"batch_size": 32, "eval.batch_size": 10},
        ),
        (SHARED, "--c.batch_size=32", {"batch_size": 32, "eval.batch_size": 32}),
        (SHARED, "--c.eval.batch_size=10", {"batch_size": 10, "eval.batch_size": 10}),
        (ONE_WAY, "--c.batch_size=32", {"batch_size": 32, "eval.batch_size": 32}),
        (ONE_WAY, "--c.eval.batch_size=10", {"batch_size": 256, "eval.batch_size": 10}),
        (RATE, "", {"schedule.learning_rate": 0.2}),
        (RATE, "--c.batch_size=128", {"schedule.learning_rate": 0.05}),
        (FLOAT_RATE, "--c.batch_size=512", {"schedule.learning_rate": 0.2}),
        (
            FLOAT_RATE,
            "--c.schedule.learning_rate=0.7",
            {"schedule.learning_rate": 0.7, "batch_size": 256},
        ),
        (CHAIN, "", {"data.image_size": 32, "data.eval_resize": 40}),
        (CHAIN, "--c.model.width=16", {"data.image_size": 64, "data.eval_resize": 80}),
        (CHAIN, "--c.data.image_size=5", {"model.width": 8, "data.eval_resize": 13}),
        (WORDS, "--c.seed=7", {"duration": "7 epochs"}),
        (BOTH, "", {"optimizer.nesterov": True}),
        (BOTH, "--noc.data.flip", {"data.flip": False, "optimizer.nesterov": False}),
        (
            FIELD,
            "--c.data.image_size=64",
            {"segmentation.short_side": 64, "data.eval_resize": 128},
        ),
        (
            SECTION,
            "'--c.checkpoint.every=5 epochs'",
            {"eval.every": "5 epochs", "log.every": "9 steps"},
        ),
        (
            EMPTY,
            "--c.batch_size=8 --c.data.name=digits --c.data.mean=0,0.5,1",
            {"eval.batch_size": 16, "data.name": "digits", "data.mean": [0, 0.5, 1]},
        ),
        (TUPLE, "", {"model.stage_sizes": [1, 1, 1, 2]}),
        (TUPLE, "--c.model.stage_sizes=(1,2,1,1)", {"model.stage_sizes": [1, 2, 1, 1]}),
        (TUPLE, "--c.model.stage_sizes=[1,2,1,1]", {"model.stage_sizes": [1, 2, 1, 1]}),
        (TUPLE, "--c.model.stage_sizes=1,2,1,1", {"model.stage_sizes": [1, 2, 1, 1]}),
        (
            TUPLE,
            "--c.model.stage_sizes=3 --c.model.stage_sizes=1,1 --c.model.stage_sizes=2",
            {"model.stage_sizes": [3, 1, 1, 2]},
        ),
        (
            LIST,
            "--c.segmentation.eval_scales[1]=0.75",
            {"segmentation.eval_scales": [0.5, 0.75]},
        ),
        ([*TWICE, "c.lock()"], "--c.batch_size=32", {"eval.batch_size": 64}),
        (PLAIN, "--c.data.flip", {"data.flip": True}),
        (PLAIN, "--c.data.flip=T --noc.data.flip", {"data.flip": False}),
        (PLAIN, "--c.seed -2", {"seed": -2}),
        (PLAIN, "--c.seed=0x1f", {"seed": 31}),
        (PLAIN, "--c.seed=4 --c.seed=5", {"seed": 5}),
        (PLAIN, "--c.schedule.learning_rate=2", {"schedule.learning_rate": 2.0}),
        (PLAIN, "--c.schedule.learning_rate 1e-1", {"schedule.learning_rate": 1e-1}),
        (PLAIN, "'--c.data.data_dir=a=b c'", {"data.data_dir": "a=b c"}),
        (PLAIN, "--c.data.data_dir=", {"data.data_dir": ""}),
        (PLAIN, "--c.data.data_dir=None", {"data.data_dir": "None"}),
        (PLAIN, "--c.data.data_dir=Bücher/日本", {"data.data_dir": "Bücher/日本"}),
    ],
)
def test_overrides_do_what_config_flags_does(write, lines, overrides, expected):
    path = write(*lines)
    words = arguments(overrides)
    theirs = by_config_flags(path, words)
    ours = leaves(load_config(path, words))
    assert expected.items() <= theirs.items()
    assert theirs.items() <= ours.items()
    # The types are the keys', and not those of the file's references.
    defaults = leaves(resolve(ConfigDict()))
    assert all(type(ours[key]) is type(defaults[key]) for key in theirs)


# What config_flags has no value for.


def test_a_required_placeholder_takes_the_command_line_s_value(write):
    lines = [
        "c.batch_size = required_placeholder(int)",
        "c.eval.batch_size = c.get_ref('batch_size')",
        "c.model.name = required_placeholder(str)",
        "c.segmentation.crop = [c.get_ref('batch_size')] * 2",
    ]
    given = ["--config.batch_size=48", "--config.model.name", "resnet34"]
    path = write(*lines)
    config = load_config(path, given)
    assert config.batch_size == config.eval.batch_size == 48
    assert config.segmentation.crop == [48, 48]
    assert config.model.name == "resnet34" and "tokens" not in config.model
    assert config.model.stage_sizes == [3, 4, 6, 3]
    with pytest.raises(UserError) as refusal:
        load_config(path, given[1:])
    assert str(refusal.value) == (
        "no value for config.batch_size (int), config.eval.batch_size (int): the "
        "file leaves it open; add --config.batch_size=VALUE"
    )
    with pytest.raises(UserError, match=r"^no value for config\.model\.name \(str\)"):
        load_config(path, given[:1])


def test_a_rate_that_refers_to_a_whole_number_takes_any(write):
    """config_flags reads such a rate as an int, and refuses even that."""
    path = write(*RATE, "c.schedule.power = 1")
    words = ["--config.schedule.learning_rate=0.7", "--config.schedule.power=0.5"]
    schedule = load_config(path, words).schedule
    assert (schedule.learning_rate, schedule.power) == (0.7, 0.5)


@pytest.mark.parametrize("value", ["[512,96]", "(512,96)", "512,96", "[512, 96]"])
@pytest.mark.parametrize("form", ["--config.segmentation.crop={}", "{}"])
def test_a_list_is_written_like_a_tuple(value, form):
    words = ["--config.segmentation.crop=[1,1]", form.format(value)]
    if form == "{}":
        words.insert(1, "--config.segmentation.crop")
    assert resolve(ConfigDict(), words).segmentation.crop == [512, 96]


def test_frozen_configurations_and_plain_dicts_are_overridden(write):
    lines = [*TWICE, "c.data = FrozenConfigDict({'mean': [0.0, 0.5, 1.0]})"]
    given = ["--config.batch_size=32", "--config.data.mean[0]=0.25"]
    for last in ("c = FrozenConfigDict(c)", "c = ConfigDict(c)"):
        config = load_config(write(*lines, last), given)
        assert config.eval.batch_size == 64
        assert config.data.mean == [0.25, 0.5, 1.0]
    plain = ConfigDict(convert_dict=False)
    plain.model, plain.data = {"name": "resnet18", "width": 8}, {"name": "digits"}
    config = resolve(plain, ["--config.model.width=16"])
    assert (config.model.name, config.model.width) == ("resnet18", 16)
    assert config.data.name == "digits"


def test_the_defaults_may_be_what_a_file_begins_with(write):
    """And what is resolved twice is the same twice: the file's stays as it was."""
    path = write(
        "from vt_flax.training.config import default_config",
        "c = default_config()",
        "c.eval.batch_size = c.get_ref('batch_size') * 2",
        "c.schedule.learning_rate = c.get_ref('batch_size').to_float() * 0.1 / 256",
    )
    config = load_config(path, ["--config.batch_size=512"])
    assert (config.eval.batch_size, config.schedule.learning_rate) == (1024, 0.2)
    assert config.data == default_config().data.lock()
    written = default_config()
    written.eval.batch_size = written.get_ref("batch_size") * 2
    for batch in (16, 8):
        config = resolve(written, [f"--config.batch_size={batch}"])
        assert config.eval.batch_size == 2 * batch
    assert written.eval.batch_size == 512


def test_what_is_resolved_has_no_references(write):
    config = load_config(write(*TWICE))
    config.batch_size = 8
    assert config.eval.batch_size == 512
    again = resolve(ConfigDict(json.loads(json.dumps(config.to_dict()))))
    assert again == config


@pytest.mark.parametrize(
    "line,overrides,message",
    [
        (
            "c.batch_size = placeholder(int)",
            "",
            r"no value for config.batch_size \(int",
        ),
        (
            "c.batch_size = placeholder(str)",
            "--c.batch_size=8",
            "config.batch_size must be int, not '8'",
        ),
        (
            "c.batch_size = placeholder(object)",
            "--c.batch_size=x",
            "config.batch_size must be int, not 'x'",
        ),
        (
            "c.seed = 3; c.batch_size = c.get_ref('seed') / 2",
            "--c.seed=8",
            "config.batch_size must be int, not 4.0",
        ),
        (
            "c.seed = 3; c.batch_size = 24 // c.get_ref('seed')",
            "--c.seed=0",
            "config.batch_size: ZeroDivisionError: ",
        ),
        (
            "c.seed = 3; c.batch_size = 24 // c.get_ref('seed'); c.seed = 0",
            "--c.seed=8",
            "configuration: ZeroDivisionError: integer division or modulo by zero",
        ),
        (
            "c.batch_size = required_placeholder(int) * 2",
            "",
            r"RequiredValueError: .* \(line 9\)$",
        ),
        (
            "c.seed = required_placeholder(int); c.lock()",
            "--c.seed=8",
            r"RequiredValueError: ",
        ),
        (
            "c.batch_size = c.get_ref('seed')",
            "--c.seed=8",
            r"KeyError: 'seed' \(line 9\)$",
        ),
        (
            "c.data.mean = (0, 0, 'a')",
            "",
            r"config.data.mean\[2\] must be float, not 'a'",
        ),
        (
            "c.data.mean = [ConfigDict({'a': 1}), 0, 0]",
            "",
            r"config.data.mean\[0\] must be float, not a: 1$",
        ),
        (
            "c.segmentation.label_map = ['cat']",
            "",
            r"config.segmentation.label_map\[0\] must be int, not 'cat'",
        ),
        (
            "c.model.stage_sizes = (1, 1, 1, 2)",
            "--c.model.stage_sizes=deep",
            r"config.model.stage_sizes\[0\] must be int, not 'deep'",
        ),
        (
            "c.seed = 3",
            "--c.data={}",
            "config.data is a section: .*--config.data.name=VALUE",
        ),
        (
            "c.seed = 3",
            "--c.data.mean[3]=1",
            r"bad override in --config.data.mean\[3\]=1: list index out of range",
        ),
        (
            "c.seed = 3",
            "--c.data.men[0]=1",
            "config.data.men is no key .* did you mean",
        ),
        (
            "c.seed = 3",
            "--c.batch-size=1",
            "config.batch-size is no key .* did you mean b",
        ),
        (
            "c.seed = 3",
            r"--c.model[\'name\']=resnet18",
            r"config.model\['name'\] is no key .*; did you mean model.name or",
        ),
        (
            "c.init_from = 'v4'; c.model.preset = c.get_ref('init_from')",
            "--c.init_from=v1",
            "config.model.preset v1: must be set by --config.model.preset=v1",
        ),
        ("c.seed = 3", "--noc.seed", "Unknown command line flag 'noconfig.seed'"),
        ("c.seed = 3", "--c.seed=1e3", "flag --config.seed=1e3: invalid literal"),
        ("c.seed = 3", "--c.seed=None", "flag --config.seed=None: invalid literal"),
        ("c.seed = 3", "--c.data.flip no", "unexpected argument 'no'; an override is"),
        ("c.seed = 3", "-flagfile=x", "unexpected argument '-flagfile=x'; an over"),
    ],
)
def test_what_cannot_be_read_or_computed(write, line, overrides, message):
    with pytest.raises(UserError, match=message) as refusal:
        load_config(write(line), arguments(overrides))
    assert "\n" not in str(refusal.value)
