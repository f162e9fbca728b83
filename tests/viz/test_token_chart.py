"""What a report on tokens is written to; what is in it, `evaluate --tokens` tests."""

import json
import pathlib
import types

import pytest

from vt_flax import evaluate
from vt_flax.inference import token_report


@pytest.fixture
def report():
    figure = {"mean": 0.5, "spread": 0.1}
    token = {"token": 0, "entropy": figure, "entropy_share": figure}
    return {
        "network": "vt_resnet18",
        "dataset": "digits",
        "step": 9,
        "weights": "ema",
        "examples": 4,
        "skipped": 0,
        "classes": None,
        "modules": [{"module": "module1", "heads": 1, "tokens": [token]}],
        "moves": [],
        "notes": [],
    }


def strictly(text):
    """Reads JSON, in which there is no NaN."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_a_dataset_may_be_called_as_it_likes(report, tmp_path):
    """Also what matplotlib reads as mathematics, and raises an error for."""
    report["dataset"] = r"$\nonsense$"
    files = token_report.write_report(tmp_path, report)
    assert [file.name for file in files] == ["tokens.json", "tokens.png"]
    assert all(file.stat().st_size for file in files)


def test_what_is_not_finite_is_null(report, tmp_path, monkeypatch, capsys):
    (token,) = report["modules"][0]["tokens"]
    token["entropy"] = {"mean": float("nan"), "spread": float("inf")}
    monkeypatch.setattr(token_report, "measure", lambda *_: report)
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(model=types.SimpleNamespace(name="vt_resnet18")),
        eval_source=types.SimpleNamespace(name="digits"),
    )
    folder = pathlib.Path(tmp_path / "tokens")
    evaluate._report_tokens(run, ({}, {}), {}, folder, {}, "json")
    texts = [capsys.readouterr().out, (folder / "tokens.json").read_text()]
    for found in map(strictly, texts):
        (token,) = found["modules"][0]["tokens"]
        assert token["entropy"] == {"mean": None, "spread": None}
