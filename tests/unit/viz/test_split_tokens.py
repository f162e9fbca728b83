"""The picture of tokens in the first images of a split."""

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny_networks import SIDE, build

from vt_flax.data.source import Example, Source
from vt_flax.inference.predictor import Predictor
from vt_flax.training.config import resolve
from vt_flax.training.tasks import task_of
from vt_flax.viz.split_tokens import draw_tokens


class Squares(Source):
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
def test_a_picture_is_drawn(tmp_path, config):
    model, variables = build(stage_sizes=[1, 1, 1, 2])
    task = task_of(config)(config, Squares.class_names)
    network = Predictor(model, variables, task, "")
    sizes = []
    for count in (1, 3):
        path = tmp_path / f"{count}.png"
        draw_tokens(path, network, Squares(), config.data, count)
        with Image.open(path) as image:
            assert image.format == "PNG"
            image.load()
            sizes.append(image.size)
            # Not an empty page.
            assert len(np.unique(np.asarray(image.convert("L")))) > 50
    # Each image has its rows: one for each module.
    assert sizes[1][0] == sizes[0][0] and sizes[1][1] > 2 * sizes[0][1]
