"""The chart of a report on tokens; what is in it, `evaluate --tokens` tests."""

from vt_flax.inference.token_chart import draw_report


def test_a_dataset_may_be_called_as_it_likes(tmp_path):
    """Also what matplotlib reads as mathematics, and raises an error for."""
    figure = {"mean": 0.5, "spread": 0.1}
    token = {"token": 0, "entropy_share": figure}
    report = {
        "network": "vt_resnet18",
        "dataset": r"$\nonsense$",
        "step": 9,
        "weights": "ema",
        "examples": 4,
        "skipped": 0,
        "classes": None,
        "modules": [{"module": "module1", "heads": 1, "tokens": [token]}],
    }
    draw_report(tmp_path / "tokens.png", report)
    assert (tmp_path / "tokens.png").stat().st_size
