"""The paper's printed counts beside ours: records, and tables for people."""

import functools
from typing import Any, NamedTuple

from vt_flax.models import create_model
from vt_flax.paper.macs import Counts, count
from vt_flax.paper.published import PUBLISHED, Row
from vt_flax.paper.published_comparison import PUBLISHED_COMPARISON, ComparisonRow
from vt_flax.paper.published_segmentation import (
    PUBLISHED_SEGMENTATION,
    SegmentationRow,
)

# How far a determined row may be off, relative to the reference.
MACS_TOLERANCE = 1e-3
PARAMS_TOLERANCE = 5e-3
# The segmentation networks' figures are printed with fewer digits.
SEGMENTATION_TOLERANCE = 1e-2
FPN_TOLERANCE = 1.5e-2
# So are those of the systems to compare with.
COMPARISON_TOLERANCE = 2e-2


@functools.cache
def counted(
    model: str, image_size: tuple[int, int] = (224, 224), **overrides: Any
) -> Counts:
    """Returns the counts of a model; the tables have many of them in common."""
    return count(create_model(model, **overrides), image_size)


def paper_rows() -> list[dict[str, Any]]:
    """Returns one record for each printed row, ours beside it."""
    return [compare(row, counted(row.model, **row.overrides)) for row in PUBLISHED]


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
        plain = counted(f"resnet{depth}").macs["stage5"]
        ratios = []
        for preset in ("v1", "v4"):
            ours = counted(f"vt_resnet{depth}", preset=preset)
            ratios.append(f"{plain / ours.macs['stage5']:.2f} ({preset})")
        lines.append(
            f"  R{depth}: {plain / 1e6:.1f} M in ResNet, fewer by {', '.join(ratios)}"
        )
    return lines


def comparison_rows() -> list[dict[str, Any]]:
    """Returns one record for each network of the comparison, ours beside it."""
    return [
        compare_system(row, counted(row.model, **row.overrides))
        for row in PUBLISHED_COMPARISON
    ]


def compare_system(row: ComparisonRow, counts: Counts) -> dict[str, Any]:
    """Sets the counts of a network of the comparison beside its row.

    Returns:
      A record with the keys of `compare` and more; None for what nobody prints.
      `macs_off` and `params_off` are relative differences in percent: from the
      multiply-adds that are printed, by the paper or else by the system's own, and from
      the parameters that the architecture must have, or else those that are printed.
      `within` is whether both of a determined network are inside the tolerances, from
      their references (see `reference_figure`), or the multiply-adds are `explained`.
    """
    gmacs, mparams = counts.total_macs / 1e9, counts.total_params / 1e6
    params = row.checked_mparams or row.figures.mparams

    def off(ours: float, figure: str, tolerance: float) -> bool:
        return abs(ours / reference_figure(ours, figure, tolerance) - 1) > tolerance

    macs = row.figures.gmacs
    macs_off = bool(macs) and off(gmacs, macs, COMPARISON_TOLERANCE)
    within = (not macs_off or bool(row.explained)) and not off(
        mparams, params, PARAMS_TOLERANCE
    )
    return {
        "table": "comparison",
        "row": row.row,
        "model": row.model,
        "printed_top1": _number(row.printed.top1),
        "printed_gmacs": row.printed.gmacs,
        "printed_mmacs": _number(row.printed.gmacs, 1e3),
        "printed_mparams": _number(row.printed.mparams),
        "own_top1": _number(row.own.top1),
        "own_gmacs": row.own.gmacs,
        "own_mparams": _number(row.own.mparams),
        "checked_mparams": _number(row.checked_mparams),
        "reference_mmacs": _number(macs, 1e3),
        "mmacs": round(1e3 * gmacs, 2),
        "mparams": round(mparams, 3),
        "macs_off": macs and round(100 * (gmacs / float(macs) - 1), 2),
        "params_off": round(100 * (mparams / float(params) - 1), 2),
        "determined": row.determined,
        "within": within if row.determined else None,
        "stage5_mmacs": None,
        "explained": row.explained if macs_off else "",
        "note": row.note,
    }


def _number(figure: str | None, times: float = 1.0) -> float | None:
    return None if figure is None else round(times * float(figure), 3)


def segmentation_rows() -> list[dict[str, Any]]:
    """Returns one record for each printed row of segmentation, ours beside it."""
    return [
        compare_segmentation(row, counted(row.model, row.image_size, **row.overrides))
        for row in PUBLISHED_SEGMENTATION
    ]


def compare_segmentation(row: SegmentationRow, counts: Counts) -> dict[str, Any]:
    """Sets a segmentation network's counts beside a printed row.

    Returns:
      A record with the keys of `compare` and more. `macs_off` and `fpn_off` are
      relative differences in percent from the print; `within` is whether both are
      inside the tolerances, each from its reference (see `reference_figure`).
    """
    gmacs, fpn = counts.total_macs / 1e9, counts.macs["fpn"] / 1e9
    reference = reference_figure(gmacs, row.gmacs, SEGMENTATION_TOLERANCE)
    fpn_reference = reference_figure(fpn, row.fpn_gmacs, FPN_TOLERANCE)
    within = (
        abs(gmacs / reference - 1) <= SEGMENTATION_TOLERANCE
        and abs(fpn / fpn_reference - 1) <= FPN_TOLERANCE
    )
    return {
        "table": "segmentation",
        "row": row.row,
        "image_size": "x".join(map(str, row.image_size)),
        "printed_gmacs": row.gmacs,
        "printed_fpn_gmacs": row.fpn_gmacs,
        "printed_mmacs": 1e3 * float(row.gmacs),
        "printed_mparams": None,
        "reference_mmacs": round(1e3 * reference, 2),
        "mmacs": round(1e3 * gmacs, 2),
        "mparams": round(counts.total_params / 1e6, 3),
        "macs_off": round(100 * (gmacs / float(row.gmacs) - 1), 3),
        "params_off": None,
        "printed_fpn_mmacs": 1e3 * float(row.fpn_gmacs),
        "reference_fpn_mmacs": round(1e3 * fpn_reference, 2),
        "fpn_mmacs": round(1e3 * fpn, 2),
        "fpn_off": round(100 * (fpn / float(row.fpn_gmacs) - 1), 3),
        "determined": True,
        "within": within,
        "stage5_mmacs": round(counts.macs["stage5"] / 1e6, 1),
        "printed_miou": row.miou,
        "note": row.note,
    }


def reference_figure(ours: float, printed: str, tolerance: float) -> float:
    """Returns the figure that ours is to be compared with.

    It is the printed one, unless that is rounded by more than the tolerance (2.0 by up
    to 2.5 %): then it is the nearest to ours among those that are printed like it.
    """
    figure = float(printed)
    half = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    if half <= tolerance * figure:
        return figure
    return min(max(ours, figure - half), figure + half)


def fpn_ratios(rows: list[dict[str, Any]]) -> list[str]:
    """Returns lines that tell how much less VT-FPN's pyramid costs than FPN's.

    Args:
      rows: what `segmentation_rows` returned.
    """
    pyramids: dict[str, dict[bool, float]] = {}
    for row in rows:
        tokens = row["row"].endswith("VT-FPN")
        pyramids.setdefault(row["image_size"], {})[tokens] = row["fpn_mmacs"]
    return [
        f"  {size}: {both[False] / 1e3:.2f} G in FPN, {both[True] / 1e3:.2f} G in "
        f"VT-FPN: fewer by {both[False] / both[True]:.2f}"
        for size, both in pyramids.items()
    ]


VERDICTS = {True: "ok", False: "OFF", None: "not determined"}


class Table(NamedTuple):
    """A table for people.

    Attributes:
      rows: records with the same keys.
      title: a line above.
      notes: lines below.
    """

    rows: list[dict[str, Any]]
    title: str
    notes: list[str]


def classification_table(rows: list[dict[str, Any]]) -> Table:
    """Returns the table of what `paper_rows` returned."""
    shown = [
        {
            "table": row["table"],
            "row": row["row"],
            "printed M MACs": row["printed_mmacs"],
            "ours ": row["mmacs"],
            "off %": f"{row['macs_off']:+.3f}",
            "printed M params": row["printed_mparams"],
            "ours": row["mparams"],
            "off % ": (
                "-" if row["params_off"] is None else f"{row['params_off']:+.2f}"
            ),
            "": VERDICTS[row["within"]],
            "note": row["note"],
        }
        for row in rows
    ]
    determined = [row for row in rows if row["determined"]]
    inside = sum(row["within"] for row in determined)
    worst = max(abs(row["macs_off"]) for row in determined)
    notes = [
        f"{inside} of {len(determined)} determined rows within {MACS_TOLERANCE:.1%} of "
        f"MACs (worst {worst:.3f} %) and {PARAMS_TOLERANCE:.1%} of parameters, where "
        "printed.",
        f"{len(rows) - len(determined)} rows are not determined by the paper; 'off' is "
        "from the print all the same.",
        "MACs are off from the print, or from the count that a misprinted or rounded "
        "row must give (JSON: reference_mmacs).",
        "Stage 5, multiply-adds (the paper's headline: up to 6.9 times fewer):",
        *stage5_ratios(),
    ]
    title = "Printed counts and ours, 224 x 224, 1000 classes"
    return Table(shown, title, notes)


def segmentation_table(rows: list[dict[str, Any]]) -> Table:
    """Returns the table of what `segmentation_rows` returned."""
    shown = [
        {
            "row": row["row"],
            "size": row["image_size"],
            "printed mIoU": f"{row['printed_miou']:.2f}",
            "printed G MACs": row["printed_gmacs"],
            "ours ": f"{row['mmacs'] / 1e3:.2f}",
            "off %": f"{row['macs_off']:+.2f}",
            "printed FPN": row["printed_fpn_gmacs"],
            "ours": f"{row['fpn_mmacs'] / 1e3:.2f}",
            "off % ": f"{row['fpn_off']:+.2f}",
            "": VERDICTS[row["within"]],
            "note": row["note"],
        }
        for row in rows
    ]
    inside = sum(row["within"] for row in rows)
    worst = max(abs(row["macs_off"]) for row in rows)
    notes = [
        f"{inside} of {len(rows)} rows within {SEGMENTATION_TOLERANCE:.1%} of the "
        f"network's MACs (worst {worst:.2f} %) and {FPN_TOLERANCE:.1%} of the FPN's.",
        "Off is from the print. Where that is rounded by more than the tolerance, the "
        "verdict is on the nearest figure that rounds to it (JSON: "
        "reference_fpn_mmacs).",
        "What the paper leaves open of VT-FPN, and what was chosen: models/vt_fpn.py.",
        "FPN, multiply-adds (the paper's headline: 6.5 times fewer at 800 x 1216):",
        *fpn_ratios(rows),
    ]
    title = "Printed counts of segmentation and ours, variant=msra"
    return Table(shown, title, notes)


def comparison_table(rows: list[dict[str, Any]]) -> Table:
    """Returns the table of what `comparison_rows` returned."""

    def figure(value: float | None, form: str = ".1f") -> str:
        return "-" if value is None else f"{value:{form}}"

    def own(row: dict[str, Any]) -> str:
        units = {"top1": "%", "gmacs": "G", "mparams": "M"}
        found = ((row[f"own_{key}"], unit) for key, unit in units.items())
        return ", ".join(f"{value} {unit}" for value, unit in found if value)

    def verdict(row: dict[str, Any]) -> str:
        explained = row["within"] and row["explained"]
        return "explained" if explained else VERDICTS[row["within"]]

    shown = [
        {
            "row": row["row"],
            "top-1 %": figure(row["printed_top1"]),
            "printed G": row["printed_gmacs"],
            "ours ": f"{row['mmacs'] / 1e3:.3f}",
            "off %": figure(row["macs_off"], "+.2f"),
            "printed M": figure(row["printed_mparams"]),
            "described M": figure(row["checked_mparams"], ".2f"),
            "ours": f"{row['mparams']:.2f}",
            "off % ": f"{row['params_off']:+.2f}",
            "": verdict(row),
            "its own paper": own(row),
            "note": row["explained"] or row["note"],
        }
        for row in rows
    ]
    determined = [row for row in rows if row["determined"]]
    inside = sum(row["within"] for row in determined)
    notes = [
        f"{inside} of {len(determined)} networks within {PARAMS_TOLERANCE:.1%} of "
        f"parameters, and within {COMPARISON_TOLERANCE:.0%} of MACs or explained.",
        "Described: what the architecture must have; parameters are off from that, or "
        "else from the print. MACs are off from the print, the paper's or else their "
        "own paper's; rounding is not held against them.",
        "VT-ResNets are trained with distillation there (v4), the others are not.",
    ]
    title = "The systems that the paper compares with, 224 x 224, 1000 classes"
    return Table(shown, title, notes)
