"""Files of token statistics; `evaluate --tokens` tests their content."""

import json
import pathlib
import types

import pytest

from vt_flax.cli import evaluate
from vt_flax.inference import token_statistics


@pytest.mark.parametrize("name", [r"$\nonsense$", "digits"])
def test_any_name_and_only_numbers(name, tmp_path, monkeypatch, capsys):
    """A name may be mathematics to matplotlib, and JSON has no NaN."""
    figure = {"mean": 0.5, "std": 0.1}
    unknown = {"mean": float("nan"), "std": float("inf")}
    token = {"token": 0, "relative_entropy": figure, "overlap": unknown}
    module = {"module": "module1", "heads": 1, "height": 2, "width": 2}
    report = {"examples": 4, "skipped": 0, "notes": []}
    report["modules"] = [{**module, "tokens": [token]}]
    monkeypatch.setattr(token_statistics, "measure", lambda *_: report)
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(model=types.SimpleNamespace(name="vt_resnet18")),
        eval_source=types.SimpleNamespace(name=name),
    )
    folder = pathlib.Path(tmp_path / "tokens")
    origin = {"step": 9, "weights": "ema"}
    evaluate._report_tokens(run, ({}, {}), {}, folder, origin, "json")
    assert (folder / "tokens.png").stat().st_size
    for text in capsys.readouterr().out, (folder / "tokens.json").read_text():
        found = json.loads(text, parse_constant=pytest.fail)
        (token,) = found["modules"][0]["tokens"]
        assert token["overlap"] == {"mean": None, "std": None}
        assert token["relative_entropy"] == figure
