"""Parameters and multiply-adds of the models, and published figures beside them.

vt_flax summarize 'vt_resnet*'            every part of the models that match
vt_flax summarize resnet50 --set width=32 with options of the model
vt_flax summarize 'fpn*' --image_size 800x1216 at another size
vt_flax summarize --paper                 beside every published row
vt_flax summarize --chart chart.png       published top-1 against both
vt_flax summarize --chart chart.svg --runs runs/a runs/b  with your own runs
vt_flax summarize --runs runs/a runs/b    a table of these
vt_flax summarize --ablation runs/ablation  of launch/ablation.sh's runs
"""

import sys
from collections.abc import Sequence
from typing import Any

from vt_flax.cli import parsing, tables
from vt_flax.errors import UserError, nearest
from vt_flax.models import create_model, list_models
from vt_flax.paper import counts, published
from vt_flax.paper.macs import count
from vt_flax.paths import local_folder


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = parsing.make_parser("summarize", __doc__)
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="GLOB",
        help="pattern of the models' names (all)",
    )
    parser.add_argument(
        "--paper", action="store_true", help="our counts beside every published row"
    )
    parser.add_argument(
        "--chart",
        metavar="FILE.png|FILE.svg",
        help="draw published top-1 against multiply-adds and parameters",
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

    size = parsing.parse_image_size("--image_size", args.image_size)
    other = [f"--{x}" for x in ("paper", "chart", "ablation", "runs") if vars(args)[x]]
    if other and (args.pattern != "*" or args.set or size != (224, 224)):
        raise UserError(
            f"{other[0]} takes no GLOB, --set or --image_size: it has its own"
        )
    if len(other) > 1 and other != ["--chart", "--runs"]:
        raise UserError(f"{' and '.join(other)}: one at a time")
    if args.paper:
        _print_paper(args.format)
    elif args.chart:
        _draw_chart(args.chart, args.runs)
    elif args.ablation:
        from vt_flax.paper.runs import ablation_rows, ablation_table

        rows = ablation_rows(local_folder("--ablation", args.ablation))
        _print_table(rows, ablation_table(rows), args.format)
    elif args.runs:
        from vt_flax.paper.runs import read_result, result_row

        runs = [local_folder("--runs", run) for run in args.runs]
        rows = [result_row(read_result(run)) for run in runs]
        tables.print_rows(rows, args.format, "Runs, by their newest evaluation")
    else:
        rows = model_rows(args.pattern, parsing.parse_overrides(args.set), size)
        tables.print_rows(rows, args.format, f"{size[0]} x {size[1]}, one image")


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
        found = count(create_model(name, **overrides), image_size)
        parts = [(part, found.macs[part], found.params[part]) for part in found.macs]
        for part, macs, params in (
            *parts,
            ("total", found.total_macs, found.total_params),
        ):
            rows.append({"model": name, "part": part, "macs": macs, "params": params})
    return rows


def _print_paper(form: str) -> None:
    """Prints the published rows and ours: tables, or one list of records."""
    kinds = [
        (published.PUBLISHED, counts.classification_table),
        (published.PUBLISHED_SEGMENTATION, counts.segmentation_table),
        (published.PUBLISHED_COMPARISON, counts.comparison_table),
    ]
    compared = [(counts.compare_rows(rows), make_table) for rows, make_table in kinds]
    if form == "json":
        tables.print_rows([row for rows, _ in compared for row in rows], form)
        return
    for i, (rows, make_table) in enumerate(compared):
        if i:
            print()
        _print_table(rows, make_table(rows), form)


def _print_table(rows: list[dict[str, Any]], table: counts.Table, form: str) -> None:
    shown = rows if form == "json" else table.rows
    tables.print_rows(shown, form, table.title, table.notes)


def _draw_chart(chart: str, runs: Sequence[str]) -> None:
    """Draws the chart of published figures, and of some runs if there are any."""
    # matplotlib takes a while to import.
    from vt_flax.paper.chart import make_figure
    from vt_flax.paper.runs import evaluated_result
    from vt_flax.viz.figures import save_figure

    path = local_folder("--chart", chart)
    results = [evaluated_result(local_folder("--runs", run)) for run in runs]
    save_figure("--chart", path, make_figure(results))
    print(f"wrote {path}", file=sys.stderr)
