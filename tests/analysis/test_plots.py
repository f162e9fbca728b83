"""Coefficient maps of the tokens, and the pictures that are drawn of them."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vt_flax.analysis.plots import draw_tokens
from vt_flax.data.source import Example, RandomAccessSource
from vt_flax.errors import UserError
from vt_flax.inference.token_maps import token_coefficients
from vt_flax.models import create_model
from vt_flax.training.config import resolve

TINY = {
    "stem": "small",
    "width": 4,
    "token_channels": 16,
    "heads": 2,
    "group_channels": 8,
    "transformer_groups": 1,
    "position_encoding": False,
    "num_classes": 3,
}
SIDE = 16
# Stage 4 is at a quarter of the side with the stem for small images.
MAP = SIDE // 4


class Squares(RandomAccessSource):
    """Images of three classes, each a bright square at a place of its own."""

    name = "squares"
    class_names = ("left", "middle", "right")

    def __len__(self):
        return 9

    def read(self, indices):
        examples = []
        for i in indices:
            image = np.full((SIDE, SIDE, 3), 20, np.uint8)
            image[4:12, 5 * (i % 3) : 5 * (i % 3) + 5] = 200
            encoded = io.BytesIO()
            Image.fromarray(image).save(encoded, "PNG")
            examples.append(Example(encoded.getvalue(), i % 3))
        return examples


def build(name="vt_resnet18", **options):
    model = create_model(name, **{**TINY, **options})
    images = jnp.zeros((1, SIDE, SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        """Draws a kernel for its inputs; quicker than the model's initialisation."""
        if path[-1].key != "kernel":
            ones = path[-1].key in ("scale", "var")
            return np.full(leaf.shape, float(ones), np.float32)
        inputs = np.prod(leaf.shape[:-1])
        return (rng.normal(size=leaf.shape) / inputs**0.5).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(fill, shapes)


def coefficients(model, variables, batch=2):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(batch, SIDE, SIDE, 3)).astype(np.float32)
    return token_coefficients(model, variables, images)


@pytest.mark.parametrize("tokenizer,later", [("dynamic", 4), ("recurrent", 8)])
def test_maps_of_every_module(tokenizer, later):
    """Half replacement extracts half of the tokens, averaged over the heads."""
    model, variables = build(tokenizer=tokenizer, stage_sizes=[1, 1, 1, 3])
    maps = coefficients(model, variables)
    assert list(maps) == ["module1", "module2", "module3"]
    assert [m.shape for m in maps.values()] == [
        (2, 8, MAP, MAP),
        (2, later, MAP, MAP),
        (2, later, MAP, MAP),
    ]
    for values in maps.values():
        assert values.dtype == np.float32 and (values >= 0).all()
        np.testing.assert_allclose(values.sum((2, 3)), 1, rtol=1e-4)
        # They depend on the image, and differ between tokens.
        assert np.abs(values[0] - values[1]).max() > 1e-6
        assert np.abs(values[:, 0] - values[:, 1]).max() > 1e-6


def test_modules_come_in_their_order():
    """The tenth after the ninth, not after the first."""
    model, variables = build(
        tokenizer="static", interaction="none", stage_sizes=[1, 1, 1, 11]
    )
    maps = coefficients(model, variables, batch=1)
    assert list(maps) == [f"module{i}" for i in range(1, 12)]


def test_the_first_maps_are_the_filters():
    """softmax over pixels of X W_A / sqrt(C), from the map of stage 4 in float64."""
    model, variables = build(stage_sizes=[1, 1, 1, 2])
    images = np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3))
    images = images.astype(np.float32)
    found = token_coefficients(model, variables, images)["module1"]
    maps = jax.jit(lambda v, x: model.apply(v, x, features=True))(variables, images)
    x = np.asarray(maps["C4"], np.float64).reshape(2, MAP * MAP, -1)
    module = variables["params"]["stage5"]["module1"]
    kernel = module["tokenizer"]["filter"]["kernel"].astype(np.float64)
    logits = x @ kernel / np.sqrt(x.shape[-1])
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    expected = weights.transpose(0, 2, 1).reshape(2, 8, MAP, MAP)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_a_stage_without_projectors_has_one_tokenizer():
    model, variables = build(projector=False, stage_sizes=[1, 1, 1, 2])
    (values,) = coefficients(model, variables).values()
    assert values.shape == (2, 8, MAP, MAP)


@pytest.mark.parametrize("first,count", [("static", 1), ("pooling", 0)])
def test_pooling_has_no_maps(first, count):
    model, variables = build(
        first_tokenizer=first,
        tokenizer="pooling",
        stage_sizes=[1, 1, 1, 2],
    )
    assert len(coefficients(model, variables)) == count


@pytest.fixture(scope="module")
def config():
    data = {"image_size": SIDE, "workers": 1}
    return resolve(ConfigDict({"data": data, "batch_size": 4}))


def test_a_picture_is_drawn(tmp_path, config, capsys):
    model, variables = build(stage_sizes=[1, 1, 1, 2])
    sizes = []
    for count in (1, 3):
        path = tmp_path / "new" / f"{count}.png"
        draw_tokens(path, model, variables, Squares(), config, count)
        assert f"wrote {path}" in capsys.readouterr().out
        with Image.open(path) as image:
            assert image.format == "PNG"
            image.load()
            sizes.append(image.size)
            # Not an empty page.
            assert len(np.unique(np.asarray(image.convert("L")))) > 50
    # Each image has its rows: one for each module.
    assert sizes[1][0] == sizes[0][0] and sizes[1][1] > 2 * sizes[0][1]


def test_a_network_without_tokens_has_no_picture(tmp_path, config):
    options = {key: TINY[key] for key in ("stem", "width", "num_classes")}
    model = create_model("resnet18", **options, stage_sizes=[1, 1, 1, 1])
    images = jnp.zeros((1, SIDE, SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    path = tmp_path / "tokens.png"
    with pytest.raises(UserError, match="no token coefficients"):
        draw_tokens(path, model, variables, Squares(), config, 1)
    assert not path.exists()


@pytest.mark.parametrize("name", ["file/tokens.png", "tokens.xyz"])
def test_a_path_that_cannot_be_written_is_named(tmp_path, config, name):
    (tmp_path / "file").write_text("in the way")
    model, variables = build(tokenizer="static", stage_sizes=[1, 1, 1, 1])
    with pytest.raises(UserError, match=name.split("/")[-1]):
        draw_tokens(tmp_path / name, model, variables, Squares(), config, 1)
