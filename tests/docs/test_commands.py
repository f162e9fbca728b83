"""Every command of README.md and docs/ is one that works.

Arguments go through the command's own parser, configurations are resolved, and scripts
print what they would do.
"""

import argparse
import configparser
import importlib
import os
import re
import shlex
import subprocess
from unittest import mock

import doc_pages
import pytest
from doc_pages import ROOT
from ml_collections import ConfigDict

from vt_flax.__main__ import COMMANDS, dispatch
from vt_flax.cli import parsing
from vt_flax.errors import UserError
from vt_flax.models import create_model, list_models
from vt_flax.plan.topology import HERE, parse_topology
from vt_flax.training.config import load_config, resolve
from vt_flax.training.config_rules import check_step
from vt_flax.training.run import model_for

LINES = [c for page in doc_pages.PAGES for c in doc_pages.commands(page)]
# The datasets that the pages prepare.
DATASETS = "cifar10", "imagenet2012", "ade20k", "image_mask_folder"
ASSIGNMENT = re.compile(r"([A-Z_]+)=(.*)")


class Parsed(Exception):
    """A command's parser, what it made of the arguments, and what it left."""


def module_of(name):
    """Returns the module of a command."""
    return importlib.import_module(f"vt_flax.cli.{name}")


def parsed(name, arguments):
    """Returns what a command's own parser makes of arguments; nothing is run."""
    parse = parsing.ArgumentParser.parse_known_args
    begun = False

    def stop(self, args=None, namespace=None):
        nonlocal begun
        if begun:  # a command's command
            return parse(self, args, namespace)
        begun = True
        raise Parsed(self, *parse(self, args, namespace))

    with mock.patch.object(parsing.ArgumentParser, "parse_known_args", stop):
        with pytest.raises(Parsed) as found:
            module_of(name).main(list(arguments))
    return found.value.args


def parsers_of(name):
    """Returns a command's parser by "", and those of its commands by their names."""

    def stop(self, args=None, namespace=None):
        raise Parsed(self)

    with mock.patch.object(parsing.ArgumentParser, "parse_known_args", stop):
        with pytest.raises(Parsed) as found:
            module_of(name).main([])
    (parser,) = found.value.args
    choices = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
    return {"": parser} | {word: p for choice in choices for word, p in choice.items()}


@pytest.fixture(scope="module")
def workdirs():
    """The workdirs that commands of the pages make, and their configurations."""
    found = {"runs/quickstart": load_config("configs/quickstart.py")}
    for command in LINES:
        words = list(command.words)
        if words[:2] == ["vt_flax", "train"]:
            start = 2
        elif "launch/tpu/resubmit.sh" in words or "launch/tpu/run.sh" in words:
            start = words.index("--") + 1
        elif words[:2] == ["vt_flax", "import_weights"]:
            _, args, _ = parsed("import_weights", words[2:])
            options = parsing.parse_overrides(args.set)
            model = {"name": args.model, **options}
            # A workdir on ImageNet: see docs/weights.md.
            data = {"name": "imagenet2012", "eval_split": "validation"}
            found[args.out] = resolve(ConfigDict({"model": model, "data": data}))
            continue
        else:
            continue
        _, args, overrides = parsed("train", words[start:])
        # From the folder that the bucket is mounted beside to here: `rsync`.
        place = args.workdir.removeprefix("../bucket/")
        found[place] = load_config(args.config, overrides)
    return found


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("command", LINES, ids=str)
def test_a_command(command, workdirs):
    words = list(command.words)
    assert not set("".join(words)) & set("|;<>&()"), "no kind of command known here"
    while ASSIGNMENT.fullmatch(words[0]):
        words.pop(0)
    if words[0] == "srun":
        words = words[words.index("vt_flax") :]
    match words:
        case ["export", *assignments]:
            assert all(map(ASSIGNMENT.fullmatch, assignments))
        case ["vt_flax", "--help"]:
            dispatch(words[1:])
        case ["source", script]:
            assert script == ".venv/bin/activate"
        case ["vt_flax", name, *arguments]:
            check_command(name, arguments, workdirs)
        case ["python", script, *arguments]:
            check_python_script(script, arguments)
        case ["bash", script, *arguments]:
            check_bash_script(script, arguments, dict(command.exported), workdirs)
        case ["pip", "install", *packages]:
            check_packages([word for word in packages if word != "-e"])
        case ["pip", "wheel", "--no-deps", "--wheel-dir", "dist", "."]:
            pass
        case ["gcloud", *arguments]:
            assert arguments[0] == "storage"
            assert any(word.startswith("gs://") for word in arguments)
        case _:
            pytest.fail("no kind of command known here")


def check_packages(packages):
    """Checks that packages are those of setup.cfg, or extras of it, as in `.[cuda]`."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = (ROOT / "setup.cfg").read_text()
    needed = {*re.findall(r"^ +([\w\[\]-]+)[=>]=", needed, flags=re.M)}
    assert packages
    for package in packages:
        if local := re.fullmatch(r"\.(?:\[([\w,]+)\])?", package):
            extras = (local[1] or "").split(",")
            assert {*extras} - {""} <= {*setup["options.extras_require"]}
        else:
            assert package in needed


def check_command(name, arguments, workdirs):
    _, args, overrides = parsed(name, arguments)
    known = vars(args)
    assert all(word.startswith("--config.") for word in overrides), overrides
    config = None
    if known.get("config"):
        config = load_config(args.config, overrides)
    elif known.get("workdir"):
        assert args.workdir in workdirs, f"nothing here makes {args.workdir}"
        config = resolve(workdirs[args.workdir], overrides)
    else:
        assert not overrides
    if config is not None:
        check_configuration(config, workdirs)
    for run in known.get("runs") or ():
        assert run in workdirs, f"nothing here makes {run}"
    for place in known.get("topology") or ():
        assert place == HERE or parse_topology(place)
    if "model" in known:
        create_model(args.model, **parsing.parse_overrides(args.set))
    if "pattern" in known:
        names = list_models(args.pattern)
        assert names
        for model in names if args.set else ():
            create_model(model, **parsing.parse_overrides(args.set))
    if name == "prepare_data":
        dataset = args.words[-1].partition("/")[0]
        assert dataset in DATASETS
        assert len(args.words) == 1 or args.words[0] == "convert"


def check_configuration(config, workdirs):
    """Checks what a run checks of its configuration before it opens the data."""
    check_step(config, 1)
    model_for(config, 10)
    for place in (config.init_from, config.distillation.teacher):
        assert not place or place in workdirs, f"nothing here makes {place}"


def check_python_script(script, arguments):
    """Runs a script's own parser on the arguments; it has no more at its start."""
    assert (ROOT / script).is_file() and script.startswith("tests/")
    module = importlib.import_module(os.path.basename(script).removesuffix(".py"))
    parse = argparse.ArgumentParser.parse_known_args

    def stop(self, args=None, namespace=None):
        raise Parsed(self, *parse(self, arguments, namespace))

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        with pytest.raises(Parsed) as found:
            module.main()
    assert not found.value.args[2]


def check_bash_script(script, arguments, exported, workdirs):
    """Has a script print what it would do, and checks what it would have trained."""
    assert (ROOT / script).is_file()
    if script == "launch/test.sh":
        assert all((ROOT / word).exists() for word in arguments if word[0] != "-")
        return
    if script == "launch/notebooks.sh":
        books = {path.stem for path in (ROOT / "launch" / "notebooks").glob("*.ipynb")}
        assert {*arguments} <= books
        return
    if script == "launch/quickstart.sh":
        assert arguments in ([], ["--extra", "cuda"])
        return
    done = subprocess.run(
        ["bash", script, "--dry-run", *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere", **exported},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line[2:]) for line in done.stdout.splitlines()]
    trained = [
        w[w.index("vt_flax") + 2 :] for w in lines if {"vt_flax", "train"} <= {*w}
    ]
    if "--" in arguments:
        trained = [arguments[arguments.index("--") + 1 :]]
    for words in trained:
        check_command("train", words, workdirs)


@pytest.mark.parametrize(
    "line",
    [
        "ls | wc",
        "vt_flax train --config configs/imagenet.py --workdir d --sed=1",
        "vt_flax train --config configs/imagenet.py:resnet19 --workdir d",
        "vt_flax evaluate --workdir runs/that_nothing_makes",
        "vt_flax plan --config configs/imagenet.py --topology v9:1x1",
        "vt_flax summarize --papers",
        "python tests/helpers/kills.py --killed 1",
        "bash launch/ablation.sh --rows nothing",
        "pip install -e '.[cude]'",
    ],
)
def test_a_wrong_command_fails(line, workdirs):
    command = doc_pages.Command("here", tuple(shlex.split(line)), ())
    with pytest.raises((UserError, AssertionError, ValueError, KeyError)):
        test_a_command(command, workdirs)


def rows_of_commands():
    (table,) = (
        t
        for t in doc_pages.tables(ROOT / "docs" / "commands.md")
        if list(t[0]) == ["command", "job"]
    )
    return [row["command"].strip("`") for row in table]


@pytest.mark.parametrize("row", rows_of_commands())
def test_a_row_of_the_table_of_commands(row):
    name, *words = row.split()
    given = set(re.findall(r"(?<!\S)\[?(--\w+)(?=[\s\]]|$)", row))
    parser = parsers_of(name)[words[0] if name == "benchmark" else ""]
    assert given <= {*parser._option_string_actions}


def test_every_command_is_in_the_table_of_commands():
    assert {row.split()[0] for row in rows_of_commands()} == {*COMMANDS}


@pytest.mark.parametrize("name", sorted({row.split()[0] for row in rows_of_commands()}))
def test_every_option_is_described(name):
    bare = [
        action.dest
        for parser in parsers_of(name).values()
        for action in parser._actions
        if not action.help and not isinstance(action.choices, dict)
    ]
    assert bare == []
