"""Parameters and multiply-adds of the models, and the paper's figures beside them.

python -m vt_flax.summarize 'vt_resnet*'            every part of the models that match
python -m vt_flax.summarize resnet50 --set width=32 with options of the model
python -m vt_flax.summarize --paper                 beside every printed row
"""

import ast
from collections.abc import Sequence
from typing import Any

from vt_flax import cli
from vt_flax.analysis.macs import Counts, count
from vt_flax.analysis.published import PUBLISHED, Row
from vt_flax.errors import UserError, nearest
from vt_flax.models import create_model, list_models

# How far a determined row may be off, relative to the reference.
MACS_TOLERANCE = 1e-3
PARAMS_TOLERANCE = 5e-3


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Parses `OPTION=VALUE` strings; values are Python literals, else strings."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair!r}: write OPTION=VALUE")
        try:
            overrides[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            overrides[key] = value
    return overrides


def model_rows(
    pattern: str, overrides: dict[str, Any], image_size: int
) -> list[dict[str, Any]]:
    """Returns one record for each part of each model that matches a glob."""
    names = list_models(pattern)
    if not names:
        raise UserError(
            f"no model matches {pattern!r}{nearest(pattern, list_models())}"
        )
    rows = []
    for name in names:
        counts = count(create_model(name, **overrides), (image_size, image_size))
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


def print_paper(form: str) -> None:
    """Prints the printed rows and ours."""
    rows = paper_rows()
    if form == "json":
        cli.print_rows(rows, form)
        return
    shown = []
    for row in rows:
        verdict = {True: "ok", False: "OFF", None: "not determined"}[row["within"]]
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
                "": verdict,
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
        shown, form, "Printed counts and ours, 224 x 224, 1000 classes", notes
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = cli.make_parser("summarize", __doc__)
    parser.add_argument("pattern", nargs="?", default="*", metavar="GLOB")
    parser.add_argument("--paper", action="store_true", help="beside the printed rows")
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the model, as in --set preset=v4 (repeatable)",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    args = parser.parse_args(argv)
    if args.image_size < 1:
        raise UserError(f"--image_size {args.image_size}: must be at least 1")
    if args.paper:
        if args.pattern != "*" or args.set or args.image_size != 224:
            raise UserError("--paper takes no GLOB, --set or --image_size: it has rows")
        print_paper(args.format)
        return
    rows = model_rows(args.pattern, parse_overrides(args.set), args.image_size)
    if args.format == "table":
        rows = [
            {k: row[k] for k in ("model", "part", "macs", "params")} for row in rows
        ]
    cli.print_rows(
        rows, args.format, f"{args.image_size} x {args.image_size}, one image"
    )


if __name__ == "__main__":
    cli.run(main)
