"""What `paper_counts` finds, as people read it."""

from typing import Any, NamedTuple

from vt_flax.paper.counts import (
    COMPARISON_TOLERANCE,
    FPN_TOLERANCE,
    MACS_TOLERANCE,
    PARAMS_TOLERANCE,
    SEGMENTATION_TOLERANCE,
    fpn_ratios,
    stage5_ratios,
)

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
