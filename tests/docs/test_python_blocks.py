"""Python in the pages does what it says there."""

import ast
import contextlib
import pathlib
import re
import sys
import types

import doc_pages
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doc_pages import ROOT
from PIL import Image

import vt_flax
from vt_flax.cli import export, train
from vt_flax.errors import UserError
from vt_flax.models import create_model, registry
from vt_flax.training.config import load_config

BLOCKS = [
    block
    for page in doc_pages.PAGES
    for block in doc_pages.blocks(page)
    if block.language == "python"
]
# A block that begins so is the file's, or what is added to it; others are programs.
FILE = re.compile(r"# ((?:vt_flax|configs)/\S+\.py)\n")
PROGRAMS = [block for block in BLOCKS if not FILE.match(block.text)]
# What these read, `at_work` makes.
READ = ("runs/quickstart", "digits.zip", "serving/digits/1")
FILES = {FILE.match(b.text)[1]: b.text for b in BLOCKS if FILE.match(b.text)}


def reads(block):
    return any(name in block.text for name in READ)


def run(block, names):
    exec(compile(block.text, str(block), "exec"), names)


@pytest.mark.parametrize("block", [b for b in PROGRAMS if not reads(b)], ids=str)
def test_a_program(block):
    names: dict = {"__name__": "block"}
    # Traced, not computed: at the sizes that are written there.
    jax.eval_shape(lambda: run(block, names))
    check(block, names)


def check(block, names):
    """What a line comes to stands behind it, as a tuple or a string."""
    found = re.findall(r"^(?:(\w+) = )?(.+)  # (\([\d, ]+\)|\"\w+\")", block.text, re.M)
    for name, expression, said in found:
        value = eval(name or expression, names)
        value = getattr(value, "shape", value)
        assert value == ast.literal_eval(said), expression


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    """A folder with a run of the quickstart, of a step, and what is made of it.

    Its network has half as many blocks, and sees few images.
    """
    folder = tmp_path_factory.mktemp("work")
    config = str(ROOT / "configs" / "quickstart.py")
    with contextlib.chdir(folder):
        train.main(
            ["--config", config, "--workdir", "runs/quickstart"]
            + ["--config.duration=1 steps", "--config.data.eval_split=test[:45]"]
            + ["--config.model.stage_sizes=[1,1,1,2]", "--config.batch_size=16"]
            + ["--config.log.tensorboard=False"]
        )
        for kind, out in (("stablehlo", READ[1]), ("savedmodel", READ[2])):
            pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
            words = ["--workdir", "runs/quickstart", "--out", out, "--kind", kind]
            try:
                export.main(words)
            except UserError as error:
                # `TensorFlow ... cannot run what JAX ... writes for it`.
                if "cannot run what JAX" not in str(error):
                    raise
        image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
        image.save("digit.png")
        image.save("another.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({b.page for b in PROGRAMS if reads(b)}))
def test_programs_at_work(page, at_work, monkeypatch):
    """Those of a page one after the other: later ones take up what was before."""
    # What it would train is trained already.
    monkeypatch.setattr(vt_flax, "train", lambda file, _: load_config(f"{ROOT}/{file}"))
    names: dict = {"__name__": "block"}
    with contextlib.chdir(at_work):
        for block in PROGRAMS:
            if block.page == page:
                if READ[2] in block.text and not pathlib.Path(READ[2]).exists():
                    pytest.skip(
                        f"{block}: this TensorFlow does not run what JAX writes"
                    )
                run(block, names)
                if reads(block):
                    check(block, names)


@pytest.mark.parametrize(
    "name", [name for name in FILES if name.startswith("configs/")]
)
def test_a_configuration(name, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILES[name])
    config = load_config(str(path))
    # What the file says, and not the defaults.
    assert config.model.preset == "v4" and config.model.tokens == 32
    assert config.optimizer.name == "sgd" and config.data.train_crop != "pad"


@pytest.fixture
def scaled(monkeypatch):
    """The model of docs/models.md, in the registry."""
    name = "vt_flax.models.scaled"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(FILES["vt_flax/models/scaled.py"], vars(module))
    monkeypatch.setattr(registry, "MODELS", dict(registry.MODELS))
    exec(FILES["vt_flax/models/registry.py"], vars(registry))
    yield "scaled_resnet18"
    del registry.ScaledResNet


def test_a_model_of_ones_own_is_known_by_its_name(scaled):
    model = create_model(scaled, scale_start=0.5, stage_sizes=[1] * 4, width=8)
    images = jnp.zeros((2, 16, 16, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    gates = [leaf for path, leaf in leaves if path[-2].key == "gate"]
    # A number for each channel of each of the four blocks.
    assert sorted(gate.shape for gate in gates) == [(8,), (16,), (32,), (64,)]
