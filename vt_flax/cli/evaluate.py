"""Evaluate a checkpoint, raw and averaged weights, over every example exactly once.

vt_flax evaluate --workdir runs/quickstart
vt_flax evaluate --workdir runs/quickstart --step 500 --format json
vt_flax evaluate --workdir runs/quickstart --token_picture tokens.png
vt_flax evaluate --workdir runs/shapes --page page.html
vt_flax evaluate --workdir runs/shapes --tokens

--tokens prints token statistics instead: for each token the entropy of its attention
map, its overlap with other tokens and, where there are masks, its share on foreground
and classes. FOLDER gets all values (tokens.json) and a chart (tokens.png). EMA weights
are used if there are any.

--best takes the checkpoint that was best in evaluation while the run went on. On
several machines, start the same command on each; see below.

The configuration is the workdir's; --config.k=v changes it, as in
--config.data.data_dir=... on another machine, or --config.data.eval_split=train.
"""

import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from vt_flax.cli import parsing, startup, tables
from vt_flax.errors import UserError
from vt_flax.parallel import processes
from vt_flax.parallel.mesh import on_devices_of
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


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = parsing.make_parser("evaluate", __doc__)
    parsing.add_checkpoint_arguments(parser)
    parser.add_argument(
        "--token_picture",
        metavar="FILE.png",
        help="also draw the token coefficients over a few images",
    )
    parser.add_argument(
        "--page",
        metavar="FILE.html",
        help="segmentation: also write the images that went best and worst",
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
    args, overrides = parser.parse_known_args(argv)

    workdir = local_folder("--workdir", args.workdir)
    folder = workdir / "tokens"
    if args.tokens:
        folder = local_folder("--tokens", args.tokens)
    page = _file("--page", args.page, (".html", ".htm"))
    picture = _file("--token_picture", args.token_picture, (".png",))
    startup.join_processes(args)
    if (picture or page) and processes.several():
        raise UserError("pictures are drawn by one process: add --processes 1")
    record = read_run(workdir)
    config = resolve(ConfigDict(record.config), overrides)
    startup.agree("evaluate", config)
    # Whatever is refused is refused before the images are gone through.
    segments = issubclass(task_of(config), Segmentation)
    if page and not segments:
        raise UserError(f"--page: {config.model.name} does not segment")
    if picture and segments:
        raise UserError("--token_picture: see `predict --tokens` for segmentation")
    modules = None
    if args.tokens is not None or picture:
        from vt_flax.inference.token_statistics import find_modules

        option = "--token_picture" if args.tokens is None else "--tokens"
        found = find_modules(config, len(record.class_names), option)
        modules = None if args.tokens is None else found
    run = prepare(config)
    for note in notes_on_data(run, record, workdir):
        if jax.process_index() == 0:
            print(f"note: {printable(note)}", file=sys.stderr)
    step, weights = restore_weights(run, workdir, args.step, args.best)
    if page:
        check_place("--page", page)
    if picture:
        check_place("--token_picture", picture)
    # Of which there are pictures and reports.
    name = "ema" if "ema" in weights else "raw"
    if modules:
        origin = {"step": step, "weights": name}
        _report_tokens(run, weights[name], modules, folder, origin, args.format)
    else:
        eval_step = compile_eval_step(run.model, run.task, run.mesh)
        results = evaluate(run, eval_step, weights)
        if jax.process_index() == 0:
            where = f"{run.eval_source.name}, step {step:,} of {workdir}"
            tables.print_results(results, args.format, where)
    if jax.process_index():
        return
    params, batch_stats = weights[name]
    variables = {"params": params, "batch_stats": batch_stats}
    # matplotlib takes a while to import: only who wants a picture waits for it.
    if page:
        from vt_flax.viz.extremes import draw_extremes

        @jax.jit
        def predict(variables, images, sizes):
            apply = functools.partial(run.model.apply, variables, train=False)
            with on_devices_of(run.mesh):
                return run.task.predict(apply, images, sizes)[0]

        with writing(f"--page {page}"):
            draw_extremes(page, run, functools.partial(predict, variables))
        print(f"wrote {page}", file=sys.stderr)
    if picture:
        from vt_flax.inference.predictor import Predictor
        from vt_flax.viz.split_tokens import draw_tokens

        network = Predictor(run.model, variables, run.task, "")
        with writing(f"--token_picture {picture}"):
            draw_tokens(picture, network, run.eval_source, config.data)
        # Standard output is for results, which may be JSON.
        print(f"wrote {picture}", file=sys.stderr)


def _file(
    option: str, name: str | None, suffixes: tuple[str, ...]
) -> pathlib.Path | None:
    """Returns the path of a file to be written, if one is wanted."""
    if not name:
        return None
    path = local_folder(option, name)
    check_name(option, path, suffixes)
    return path


def _report_tokens(
    run: Run,
    weights: tuple[Any, Any],
    modules: dict[str, tuple[int, ...]],
    folder: pathlib.Path,
    origin: dict[str, Any],
    form: str,
) -> None:
    """Writes and prints the token statistics; see `token_statistics.measure`."""
    from vt_flax.inference import token_statistics

    # Before a pass over the dataset.
    if jax.process_index() == 0:
        with writing(f"--tokens {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
    measured = token_statistics.measure(run, weights, modules)
    if jax.process_index():
        return
    # matplotlib takes a while to import.
    from vt_flax.viz.token_chart import draw_chart

    network, dataset = run.config.model.name, run.eval_source.name
    report = {"network": network, "dataset": dataset, **origin, **measured}
    files = folder / "tokens.json", folder / "tokens.png"
    with writing(f"--tokens {folder}"):
        files[0].write_text(json_text(report) + "\n")
        draw_chart(files[1], report)
    if form == "json":
        print(json_text(report))
    else:
        rows, title = (
            token_statistics.table_rows(report),
            token_statistics.title(report),
        )
        tables.print_rows(rows, form, title, report["notes"])
    for file in files:
        print(f"wrote {file}", file=sys.stderr)
