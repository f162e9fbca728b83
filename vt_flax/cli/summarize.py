"""Parameters and multiply-adds of the models, and published figures beside them.

vt_flax summarize 'vt_resnet*'            every part of the models that match
vt_flax summarize resnet50 --set width=32 with options of the model
vt_flax summarize 'fpn*' --image_size 800x1216 at another size
vt_flax summarize --paper                 beside every printed row
vt_flax summarize --chart chart.png       published top-1 against both
vt_flax summarize --chart chart.svg --runs runs/a runs/b  with your own runs
vt_flax summarize --runs runs/a runs/b    a table of these
vt_flax summarize --ablation runs/ablation  of launch/ablation.sh's runs
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from vt_flax.cli import parsing, tables
from vt_flax.errors import UserError, nearest
from vt_flax.models import create_model, list_models
from vt_flax.paper.counts import (
    classification_table,
    comparison_rows,
    comparison_table,
    paper_rows,
    segmentation_rows,
    segmentation_table,
)
from vt_flax.paper.macs import count
from vt_flax.paths import local_folder


def parse_image_size(text: str) -> tuple[int, int]:
    """Returns height and width of `SIDE` or `HEIGHTxWIDTH`, in pixels.

    Raises:
      UserError: for anything else, and for sides that no image has.
    """
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
    if max(sides) > parsing.MOST_PIXELS:
        raise UserError(f"--image_size {text}: must be at most {parsing.MOST_PIXELS}")
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
    """Prints the printed rows and ours: tables, or one list of records."""
    kinds = [
        (paper_rows(), classification_table),
        (segmentation_rows(), segmentation_table),
        (comparison_rows(), comparison_table),
    ]
    if form == "json":
        tables.print_rows([row for rows, _ in kinds for row in rows], form)
        return
    for i, (rows, made) in enumerate(kinds):
        if i:
            print()
        table = made(rows)
        tables.print_rows(table.rows, form, table.title, table.notes)


def draw(chart: str, runs: Sequence[pathlib.Path]) -> None:
    """Draws the chart of published figures, and of some runs if there are any."""
    # matplotlib takes a while to import: only who wants a picture waits for it.
    from vt_flax.paper.chart import draw_chart
    from vt_flax.paper.runs import evaluated_result
    from vt_flax.viz.figures import check_name

    path = local_folder("--chart", chart)
    check_name("--chart", path)
    draw_chart(path, [evaluated_result(run) for run in runs])
    print(f"wrote {path}", file=sys.stderr)


def print_ablation(folder: str, form: str) -> None:
    """Prints the runs of `launch/ablation.sh` beside the paper's rows."""
    # Late, as in `print_runs`: what reads workdirs takes a while to import.
    from vt_flax.paper.runs import ablation_rows, ablation_table

    rows = ablation_rows(local_folder("--ablation", folder))
    table = ablation_table(rows)
    tables.print_rows(
        rows if form == "json" else table.rows, form, table.title, table.notes
    )


def print_runs(runs: Sequence[pathlib.Path], form: str) -> None:
    """Prints what some runs have come to."""
    from vt_flax.paper.runs import read_result, result_row

    rows = [result_row(read_result(run)) for run in runs]
    tables.print_rows(rows, form, "Runs, by their newest evaluation")


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = parsing.make_parser("summarize", __doc__)
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="GLOB",
        help="which models, by their names (all)",
    )
    parser.add_argument("--paper", action="store_true", help="beside the printed rows")
    parser.add_argument(
        "--chart",
        metavar="FILE.png|FILE.svg",
        help="draw top-1 against multiply-adds and parameters, as published",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        default=[],
        metavar="WORKDIR",
        help="your own runs: on the chart, or else as a table",
    )
    parser.add_argument(
        "--ablation",
        metavar="FOLDER",
        help="the runs of launch/ablation.sh beside the paper's rows",
    )
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
    parsing.add_format_argument(parser)
    args = parser.parse_args(argv)
    height, width = parse_image_size(args.image_size)
    other = [f"--{x}" for x in ("paper", "chart", "ablation", "runs") if vars(args)[x]]
    if other:
        if args.pattern != "*" or args.set or (height, width) != (224, 224):
            raise UserError(
                f"{other[0]} takes no GLOB, --set or --image_size: it has its own"
            )
        if len(other) > 1 and other != ["--chart", "--runs"]:
            raise UserError(f"{' and '.join(other)}: one at a time")
        runs = [local_folder("--runs", run) for run in args.runs]
        if args.paper:
            print_paper(args.format)
        elif args.chart:
            draw(args.chart, runs)
        elif args.ablation:
            print_ablation(args.ablation, args.format)
        else:
            print_runs(runs, args.format)
        return
    rows = model_rows(args.pattern, parsing.parse_overrides(args.set), (height, width))
    if args.format == "table":
        rows = [
            {k: row[k] for k in ("model", "part", "macs", "params")} for row in rows
        ]
    tables.print_rows(rows, args.format, f"{height} x {width}, one image")
