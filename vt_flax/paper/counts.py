"""The published counts beside ours: records, and tables for people."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from vt_flax.models import create_model
from vt_flax.paper.macs import Counts, count
from vt_flax.paper.published import Row

# Largest relative differences of multiply-adds from the print; some tables print fewer
# digits than others.
MACS_TOLERANCE = {"segmentation": 1e-2, "comparison": 2e-2}
EXACT = 1e-3
PARAMS_TOLERANCE = 5e-3
FPN_TOLERANCE = 1.5e-2
VERDICTS = {True: "ok", False: "OFF", None: "not determined"}

Record = dict[str, Any]


class Table(NamedTuple):
    """A table for people.

    Attributes:
      rows: records with the same keys.
      title: a line above.
      notes: lines below.
    """

    rows: list[Record]
    title: str
    notes: list[str]


@functools.cache
def counted(
    model: str, image_size: tuple[int, int] = (224, 224), **overrides: Any
) -> Counts:
    """Returns the counts of a model; the tables have many of them in common."""
    return count(create_model(model, **overrides), image_size)


def compare_rows(rows: Sequence[Row]) -> list[Record]:
    """Returns one record for each row of a table, ours beside it."""
    return [
        compare(row, counted(row.model, row.image_size, **row.overrides))
        for row in rows
    ]


def compare(row: Row, counts: Counts) -> Record:
    """Sets a model's counts beside a row.

    Returns:
      A record, with None for what nobody prints. `macs_off` and `params_off` are
      relative differences in percent: from the figure that the described architecture
      must have, else from the paper's, else from the system's own paper's. `within` is
      whether all differences of a determined row are inside the tolerances, or its
      multiply-adds are explained; rounding of the print is no difference, see
      `reference_figure`. Rows of segmentation have the pyramid's figures too.
    """
    gmacs, mparams = counts.total_macs / 1e9, counts.total_params / 1e6
    tolerance = MACS_TOLERANCE.get(row.table, EXACT)
    macs, params = row.gmacs or row.figures.gmacs, row.mparams or row.figures.mparams
    macs_close = _close(gmacs, macs, tolerance)
    within = (macs_close or bool(row.explained)) and (
        _close(mparams, params, PARAMS_TOLERANCE)
    )
    record = {
        "table": row.table,
        "row": row.row,
        "image_size": "x".join(map(str, row.image_size)),
        "printed_accuracy": row.printed.accuracy and float(row.printed.accuracy),
        "printed_gmacs": row.printed.gmacs,
        "printed_mparams": row.printed.mparams,
        "reference_gmacs": macs,
        "reference_mparams": params,
        "mmacs": round(1e3 * gmacs, 2),
        "mparams": round(mparams, 3),
        "macs_off": _off(gmacs, macs),
        "params_off": _off(mparams, params),
    }
    if row.fpn_gmacs:
        fpn = counts.macs["fpn"] / 1e9
        within = within and _close(fpn, row.fpn_gmacs, FPN_TOLERANCE)
        record |= {
            "printed_fpn_gmacs": row.fpn_gmacs,
            "fpn_mmacs": round(1e3 * fpn, 2),
            "fpn_off": _off(fpn, row.fpn_gmacs),
        }
    own = zip(row.own, ("%", "G", "M"), strict=True)
    own = ", ".join(f"{figure} {unit}" for figure, unit in own if figure)
    explained = "" if macs_close else row.explained
    notes = (row.note, explained, own and f"its own paper: {own}")
    return record | {
        "within": within if row.determined else None,
        "note": "; ".join(filter(None, notes)),
    }


def _off(ours: float, reference: str | None) -> float | None:
    """Returns a relative difference in percent."""
    return reference and round(100 * (ours / float(reference) - 1), 3)


def _close(ours: float, printed: str | None, tolerance: float) -> bool:
    if printed is None:
        return True
    return abs(ours / reference_figure(ours, printed, tolerance) - 1) <= tolerance


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


def classification_table(records: list[Record]) -> Table:
    """Returns the table of the paper's rows of classification."""
    notes = [
        f"{len(_determined(records))} rows are determined by the paper; 'off' is from "
        "the print all the same for the others.",
        "A misprinted or rounded figure has beside it what the architecture must have.",
        "Stage 5, multiply-adds (the paper's headline: up to 6.9 times fewer):",
    ]
    # ResNet-101 has ResNet-50's stage 5.
    for depth in (18, 34, 50):
        plain = counted(f"resnet{depth}").macs["stage5"]
        ratios = []
        for preset in ("v1", "v4"):
            ours = counted(f"vt_resnet{depth}", preset=preset).macs["stage5"]
            ratios.append(f"{plain / ours:.2f} ({preset})")
        notes.append(
            f"  R{depth}: {plain / 1e6:.1f} M in ResNet, fewer by {', '.join(ratios)}"
        )
    title = "Published counts and ours, 224 x 224, 1000 classes"
    return _table(records, title, EXACT, notes)


def segmentation_table(records: list[Record]) -> Table:
    """Returns the table of the paper's rows of segmentation."""
    notes = [
        "What the paper leaves open of VT-FPN, and what was chosen: models/vt_fpn.py.",
        "FPN, multiply-adds (the paper's headline: 6.5 times fewer at 800 x 1216):",
    ]
    pyramids = {
        (r["image_size"], r["row"].split()[-1]): r["fpn_mmacs"] / 1e3 for r in records
    }
    for size in dict.fromkeys(record["image_size"] for record in records):
        plain, ours = pyramids[size, "FPN"], pyramids[size, "VT-FPN"]
        notes.append(
            f"  {size}: {plain:.2f} G in FPN, {ours:.2f} G in VT-FPN: fewer by "
            f"{plain / ours:.2f}"
        )
    title = "Published counts of segmentation and ours, variant=msra"
    return _table(records, title, MACS_TOLERANCE["segmentation"], notes)


def comparison_table(records: list[Record]) -> Table:
    """Returns the table of the systems that the paper compares with."""
    notes = [
        "Reference: what the described architecture must have, or else the print, the "
        "paper's or else its own paper's.",
        "VT-ResNets are trained with distillation there (v4), the others are not.",
    ]
    title = "The systems that the paper compares with, 224 x 224, 1000 classes"
    return _table(records, title, MACS_TOLERANCE["comparison"], notes)


def _table(
    records: list[Record], title: str, tolerance: float, notes: list[str]
) -> Table:
    segmentation = records[0]["table"] == "segmentation"
    shown = []
    for record in records:
        row = {"row": record["row"]}
        if segmentation:
            row["size"] = record["image_size"]
        row |= {
            "mIoU %" if segmentation else "top-1 %": record["printed_accuracy"],
            "printed G MACs": record["printed_gmacs"],
            "reference G": record["reference_gmacs"],
            "ours G": f"{record['mmacs'] / 1e3:.3f}",
            "off %": _signed(record["macs_off"]),
        }
        if segmentation:
            row |= {
                "printed FPN": record["printed_fpn_gmacs"],
                "ours FPN": f"{record['fpn_mmacs'] / 1e3:.2f}",
                "FPN off %": _signed(record["fpn_off"]),
            }
        else:
            row |= {
                "printed M params": record["printed_mparams"],
                "reference M": record["reference_mparams"],
                "ours M": f"{record['mparams']:.2f}",
                "params off %": _signed(record["params_off"]),
            }
        row |= {"": VERDICTS[record["within"]], "note": record["note"]}
        shown.append(row)
    determined = _determined(records)
    inside = sum(record["within"] for record in determined)
    other = "the FPN's" if segmentation else "parameters"
    least = FPN_TOLERANCE if segmentation else PARAMS_TOLERANCE
    verdict = (
        f"{inside} of {len(determined)} determined rows within {tolerance:.1%} of the "
        f"multiply-adds, or explained, and {least:.1%} of {other}, where printed. "
        "Rounding of the print is not held against them."
    )
    return Table(shown, title, [verdict, *notes])


def _determined(records: list[Record]) -> list[Record]:
    return [record for record in records if record["within"] is not None]


def _signed(off: float | None) -> str:
    return "-" if off is None else f"{off:+.2f}"
