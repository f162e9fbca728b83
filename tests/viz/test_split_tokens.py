"""The picture of tokens in the first images of a split."""

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny_networks import RESNET, SIDE, build, variables_of

from vt_flax.data.source import Example, RandomAccessSource
from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.training.config import resolve
from vt_flax.viz.split_tokens import draw_tokens


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


@pytest.fixture(scope="module")
def config():
    data = {"image_size": SIDE, "workers": 1}
    return resolve(ConfigDict({"data": data, "batch_size": 4}))


@pytest.mark.slow
def test_a_picture_is_drawn(tmp_path, config, capsys):
    model, variables = build(stage_sizes=[1, 1, 1, 2])
    sizes = []
    for count in (1, 3):
        path = tmp_path / "new" / f"{count}.png"
        draw_tokens(path, model, variables, Squares(), config, count)
        assert f"wrote {path}" in (said := capsys.readouterr()).err and not said.out
        with Image.open(path) as image:
            assert image.format == "PNG"
            image.load()
            sizes.append(image.size)
            # Not an empty page.
            assert len(np.unique(np.asarray(image.convert("L")))) > 50
    # Each image has its rows: one for each module.
    assert sizes[1][0] == sizes[0][0] and sizes[1][1] > 2 * sizes[0][1]


def test_a_network_without_tokens_has_no_picture(tmp_path, config):
    model = create_model("resnet18", **RESNET)
    variables = variables_of(model)
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
