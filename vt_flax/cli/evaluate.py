"""Evaluate a checkpoint, raw and EMA weights, over every example exactly once.

vt_flax evaluate --workdir runs/quickstart
vt_flax evaluate --workdir runs/quickstart --step 500 --format json
vt_flax evaluate --workdir runs/quickstart --token_picture tokens.png
vt_flax evaluate --workdir runs/shapes --page page.html
vt_flax evaluate --workdir runs/shapes --tokens

--tokens prints token statistics instead: for each token the entropy of its attention
map, its overlap with other tokens and, where there are masks, its shares on the
classes. FOLDER gets all values (tokens.json) and a chart (tokens.png). Pictures and
statistics are of the EMA weights if there are any.

--best takes the checkpoint that was best in evaluation while the run went on. On
several machines, start the same command on each; see below.

The configuration is the workdir's; --config.k=v changes it, as in
--config.data.data_dir=... on another machine, or --config.data.eval_split=train.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from vt_flax.cli import parsing, startup, tables
from vt_flax.errors import UserError
from vt_flax.parallel import processes
from vt_flax.paths import local_folder, writing
from vt_flax.texts import json_text, printable
from vt_flax.training.api import notes_on_data, restore_weights
from vt_flax.training.config import resolve
from vt_flax.training.evaluation import evaluate
from vt_flax.training.run import Run, prepare
from vt_flax.training.step import compile_eval_step
from vt_flax.training.tasks import task_of
from vt_flax.training.tasks.segmentation import Segmentation
from vt_flax.training.workdir import read_run
from vt_flax.viz.figures import check_name, check_place

# Files that may be written beside the results.
SUFFIXES = {"--page": (".html", ".htm"), "--token_picture": (".png",)}


def main(argv: Sequence[str]) -> None:
    """The command."""
    args, overrides = _parser().parse_known_args(argv)
    workdir = local_folder("--workdir", args.workdir)
    statistics = args.tokens is not None
    folder = local_folder("--tokens", args.tokens or workdir / "tokens")
    names = {"--page": args.page, "--token_picture": args.token_picture}
    files = {
        option: local_folder(option, name) for option, name in names.items() if name
    }
    for option, file in files.items():
        check_name(option, file, SUFFIXES[option])
    startup.join_processes(args)
    if files and processes.several():
        raise UserError("pictures are drawn by one process: add --processes 1")
    record = read_run(workdir)
    config = resolve(ConfigDict(record.config), overrides)
    startup.agree("evaluate", config)

    # Errors of arguments come before the images are gone through.
    segments = issubclass(task_of(config), Segmentation)
    if args.page and not segments:
        raise UserError(f"--page: {config.model.name} does not segment")
    if args.token_picture and segments:
        raise UserError("--token_picture: see `predict --tokens` for segmentation")
    if statistics or args.token_picture:
        from vt_flax.inference.token_statistics import find_modules

        option = "--tokens" if statistics else "--token_picture"
        modules = find_modules(config, len(record.class_names), option)
    run = prepare(config)
    first = jax.process_index() == 0
    if first:
        for note in notes_on_data(run, record, workdir):
            print(f"note: {printable(note)}", file=sys.stderr)
    step, weights = restore_weights(run, workdir, args.step, args.best)
    for option, file in files.items():
        check_place(option, file)
    if statistics and first:
        with writing(f"--tokens {folder}"):
            folder.mkdir(parents=True, exist_ok=True)

    name = "ema" if "ema" in weights else "raw"
    if statistics:
        from vt_flax.inference.token_statistics import measure

        report = {"network": config.model.name, "dataset": run.eval_source.name}
        report |= {"step": step, "weights": name}
        report |= measure(run, weights[name], modules)
        if first:
            _print_tokens(report, folder, args.format)
    else:
        eval_step = compile_eval_step(run.model, run.task, run.mesh)
        results = evaluate(run, eval_step, weights)
        if first:
            where = f"{run.eval_source.name}, step {step:,} of {workdir}"
            tables.print_results(results, args.format, where)
    params, batch_stats = weights[name]
    variables = {"params": params, "batch_stats": batch_stats}
    if args.page:
        _write_page(run, variables, files["--page"])
    if args.token_picture:
        _draw_tokens(run, variables, files["--token_picture"])


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("evaluate", __doc__)
    parsing.add_checkpoint_arguments(parser)
    parser.add_argument(
        "--token_picture",
        metavar="FILE.png",
        help="also draw token attention over a few images",
    )
    parser.add_argument(
        "--page",
        metavar="FILE.html",
        help="segmentation: also write a page of the best and the worst images",
    )
    parser.add_argument(
        "--tokens",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="token statistics of the whole split (default folder: WORKDIR/tokens)",
    )
    parsing.add_format_argument(parser)
    parsing.add_process_arguments(parser)
    return parser


def _print_tokens(report: dict[str, Any], folder: pathlib.Path, form: str) -> None:
    """Prints token statistics, and writes them with their chart to a folder."""
    # matplotlib takes a while to import.
    from vt_flax.inference.token_statistics import table_rows, title
    from vt_flax.viz.token_chart import draw_chart

    values, chart = folder / "tokens.json", folder / "tokens.png"
    with writing(f"--tokens {folder}"):
        values.write_text(json_text(report) + "\n")
        draw_chart(chart, report)
    if form == "json":
        print(json_text(report))
    else:
        tables.print_rows(table_rows(report), form, title(report))
    # Standard output is for results, which may be JSON.
    print(f"wrote {values}", f"wrote {chart}", sep="\n", file=sys.stderr)


def _write_page(run: Run, variables: Any, page: pathlib.Path) -> None:
    """Writes the page of the best and the worst segmented images."""
    from vt_flax.viz.extremes import draw_extremes

    with writing(f"--page {page}"):
        draw_extremes(page, run, variables)
    print(f"wrote {page}", file=sys.stderr)


def _draw_tokens(run: Run, variables: Any, picture: pathlib.Path) -> None:
    """Draws token attention over images of the evaluation split."""
    from vt_flax.inference.predictor import Predictor
    from vt_flax.viz.split_tokens import draw_tokens

    network = Predictor(run.model, variables, run.task, "")
    with writing(f"--token_picture {picture}"):
        draw_tokens(picture, network, run.eval_source, run.config.data)
    print(f"wrote {picture}", file=sys.stderr)
