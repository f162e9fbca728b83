"""Measured training steps as records, and as tables."""

from collections.abc import Sequence
from typing import Any

from vt_flax.measure.step_rate import Rate
from vt_flax.plan.peaks import utilisation

COSTS = (
    "trace_s",
    "compile_s",
    "cached_s",
    "arguments_mb",
    "working_mb",
    "peak_mb",
)
RATE_COLUMNS = {
    "step": "step",
    "batch": "batch",
    "ms": "ms",
    "ms_quartiles": "quartiles",
    "images_per_second": "images/s",
    "ours_ratio": "ours over it",
    "ours_ratio_quartiles": "quartiles of that",
    "mfu": "MFU %",
    "what": "what",
}
COST_COLUMNS = {
    "step": "step",
    "batch": "batch",
    "trace_s": "tracing s",
    "compile_s": "compiling s",
    "cached_s": "from the cache s",
    "arguments_mb": "state, batch MB",
    "working_mb": "at work MB",
    "peak_mb": "peak MB",
}


def short(value: float) -> float:
    """Returns a figure with four digits that count."""
    return float(f"{value:.4g}")


def record(rate: Rate, costs: dict[str, Any], peak: float | None) -> dict[str, Any]:
    """Returns what is told of a step.

    Args:
      rate: what was measured.
      costs: some of COSTS: see `compile_time.compile_costs`.
      peak: FLOP/s of all devices; None where it is not known.
    """
    images = rate.batch / rate.seconds.median
    if rate.peak_bytes is not None:
        costs = costs | {"peak_mb": rate.peak_bytes / 1e6}
    mfu = utilisation(rate.macs, images, peak) if peak else None
    return {
        "step": rate.step,
        "what": rate.what,
        "batch": rate.batch,
        "ms": short(1e3 * rate.seconds.median),
        "ms_quartiles": [short(1e3 * x) for x in rate.seconds.quartiles],
        "images_per_second": short(images),
        "ours_ratio": round(rate.ratio.median, 3),
        "ours_ratio_quartiles": [round(x, 3) for x in rate.ratio.quartiles],
        "mfu": None if mfu is None else round(100 * mfu, 2),
        **{key: None if (x := costs.get(key)) is None else short(x) for key in COSTS},
    }


def rate_rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the table of rates."""
    return _columns(records, RATE_COLUMNS)


def cost_rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the table of compile times and memory, of those where any is known."""
    known = [row for row in records if any(row[key] is not None for key in COSTS)]
    return _columns(known, COST_COLUMNS)


def _columns(
    records: Sequence[dict[str, Any]], columns: dict[str, str]
) -> list[dict[str, Any]]:
    def text(value: Any) -> Any:
        return " to ".join(map(str, value)) if isinstance(value, list) else value

    return [
        {title: text(row[key]) for key, title in columns.items()} for row in records
    ]
