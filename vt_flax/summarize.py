"""Parameters and multiply-adds of the models, and the paper's figures beside them.

python -m vt_flax.summarize 'vt_resnet*'            every part of the models that match
python -m vt_flax.summarize resnet50 --set width=32 with options of the model
python -m vt_flax.summarize 'fpn*' --image_size 800x1216 at another size
python -m vt_flax.summarize --paper                 beside every printed row
"""

from collections.abc import Sequence
from typing import Any

from vt_flax import cli
from vt_flax.analysis.macs import count
from vt_flax.analysis.paper_counts import (
    FPN_TOLERANCE,
    MACS_TOLERANCE,
    PARAMS_TOLERANCE,
    SEGMENTATION_TOLERANCE,
    fpn_ratios,
    paper_rows,
    segmentation_rows,
    stage5_ratios,
)
from vt_flax.errors import UserError, nearest
from vt_flax.models import create_model, list_models

VERDICTS = {True: "ok", False: "OFF", None: "not determined"}


def parse_image_size(text: str) -> tuple[int, int]:
    """Returns height and width of `SIDE` or `HEIGHTxWIDTH`, in pixels."""
    try:
        sides = [int(side) for side in text.split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise UserError(
            f"--image_size {text!r}: write a side in pixels, or HEIGHTxWIDTH"
        )
    if min(sides) < 1:
        raise UserError(f"--image_size {text}: must be at least 1")
    return sides[0], sides[-1]


def model_rows(
    pattern: str, overrides: dict[str, Any], image_size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Returns one record for each part of each model that matches a glob."""
    names = list_models(pattern)
    if not names:
        raise UserError(
            f"no model matches {pattern!r}{nearest(pattern, list_models())}"
        )
    rows = []
    for name in names:
        counts = count(create_model(name, **overrides), image_size)
        for part in counts.macs:
            rows.append(_row(name, part, counts.macs[part], counts.params[part]))
        rows.append(_row(name, "total", counts.total_macs, counts.total_params))
    return rows


def _row(name: str, part: str, macs: int, params: int) -> dict[str, Any]:
    return {
        "model": name,
        "part": part,
        "mmacs": round(macs / 1e6, 2),
        "mparams": round(params / 1e6, 3),
        "macs": macs,
        "params": params,
    }


def print_paper(form: str) -> None:
    """Prints the printed rows and ours: two tables, or one list of records."""
    rows, segmentation = paper_rows(), segmentation_rows()
    if form == "json":
        cli.print_rows(rows + segmentation, form)
        return
    print_classification(rows)
    print()
    print_segmentation(segmentation)


def print_classification(rows: list[dict[str, Any]]) -> None:
    """Prints a table of what `paper_rows` returned."""
    shown = []
    for row in rows:
        shown.append(
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
        )
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
    cli.print_rows(
        shown, "table", "Printed counts and ours, 224 x 224, 1000 classes", notes
    )


def print_segmentation(rows: list[dict[str, Any]]) -> None:
    """Prints a table of what `segmentation_rows` returned."""
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
    cli.print_rows(shown, "table", title, notes)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = cli.make_parser("summarize", __doc__)
    parser.add_argument("pattern", nargs="?", default="*", metavar="GLOB")
    parser.add_argument("--paper", action="store_true", help="beside the printed rows")
    parser.add_argument(
        "--image_size",
        default="224",
        metavar="SIDE|HEIGHTxWIDTH",
        help="in pixels (%(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the model, as in --set preset=v4 (repeatable)",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    args = parser.parse_args(argv)
    height, width = parse_image_size(args.image_size)
    if args.paper:
        if args.pattern != "*" or args.set or (height, width) != (224, 224):
            raise UserError("--paper takes no GLOB, --set or --image_size: it has rows")
        print_paper(args.format)
        return
    rows = model_rows(args.pattern, cli.parse_overrides(args.set), (height, width))
    if args.format == "table":
        rows = [
            {k: row[k] for k in ("model", "part", "macs", "params")} for row in rows
        ]
    cli.print_rows(rows, args.format, f"{height} x {width}, one image")


if __name__ == "__main__":
    cli.run(main)
