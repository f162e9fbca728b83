"""The chart of token statistics; `evaluate --tokens` tests what it is made of."""

import math

import numpy as np
from PIL import Image

from vt_flax.viz.token_chart import draw_chart


def test_any_name_and_unknown_values(tmp_path):
    """A name may be mathematics to matplotlib, and a value of no example is NaN."""
    known, unknown = {"mean": 0.5, "std": 0.1}, {"mean": math.nan, "std": math.nan}
    token = {"token": 0, "relative_entropy": known, "overlap": unknown}
    report = {"network": "vt", "dataset": r"$\nonsense$", "step": 9, "weights": "ema"}
    report |= {"examples": 4, "skipped": 0}
    report["modules"] = [{"module": f"module{i}", "tokens": [token]} for i in (1, 2)]
    draw_chart(tmp_path / "tokens.png", report)
    with Image.open(tmp_path / "tokens.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
