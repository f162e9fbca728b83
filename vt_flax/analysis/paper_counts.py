"""The paper's printed counts beside ours, as records."""

from typing import Any

from vt_flax.analysis.macs import Counts, count
from vt_flax.analysis.published import PUBLISHED, Row
from vt_flax.models import create_model

# How far a determined row may be off, relative to the reference.
MACS_TOLERANCE = 1e-3
PARAMS_TOLERANCE = 5e-3


def paper_rows() -> list[dict[str, Any]]:
    """Returns one record for each printed row, ours beside it."""
    known: dict[str, Counts] = {}
    rows = []
    for row in PUBLISHED:
        key = f"{row.model} {sorted(row.overrides.items())}"
        if key not in known:
            known[key] = count(create_model(row.model, **row.overrides))
        rows.append(compare(row, known[key]))
    return rows


def compare(row: Row, counts: Counts) -> dict[str, Any]:
    """Sets a model's counts beside a printed row.

    Returns:
      A record; `macs_off` and `params_off` are relative differences in percent from
      the reference figure, `within` whether a determined row is inside the tolerances.
    """
    mmacs, mparams = counts.total_macs / 1e6, counts.total_params / 1e6
    macs_off = mmacs / row.reference_mmacs - 1
    params_off = None if row.mparams is None else mparams / row.mparams - 1
    within = abs(macs_off) <= MACS_TOLERANCE and (
        abs(params_off or 0.0) <= PARAMS_TOLERANCE
    )
    return {
        "table": row.table,
        "row": row.row,
        "printed_mmacs": row.mmacs,
        "printed_mparams": row.mparams,
        "reference_mmacs": row.reference_mmacs,
        "mmacs": round(mmacs, 2),
        "mparams": round(mparams, 3),
        "macs_off": round(100 * macs_off, 3),
        "params_off": None if params_off is None else round(100 * params_off, 2),
        "determined": row.determined,
        "within": within if row.determined else None,
        "stage5_mmacs": round(counts.macs["stage5"] / 1e6, 1),
        "note": row.note,
    }


def stage5_ratios() -> list[str]:
    """Returns lines that tell how much less stage 5 costs than ResNet's."""
    lines = []
    for depth in (18, 34, 50, 101):
        plain = count(create_model(f"resnet{depth}")).macs["stage5"]
        ratios = []
        for preset in ("v1", "v4"):
            ours = count(create_model(f"vt_resnet{depth}", preset=preset))
            ratios.append(f"{plain / ours.macs['stage5']:.2f} ({preset})")
        lines.append(
            f"  R{depth}: {plain / 1e6:.1f} M in ResNet, fewer by {', '.join(ratios)}"
        )
    return lines
