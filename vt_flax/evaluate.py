"""Evaluate a checkpoint, raw and averaged weights, over every example exactly once.

python -m vt_flax.evaluate --workdir runs/quickstart
python -m vt_flax.evaluate --workdir runs/quickstart --step 500 --format json
python -m vt_flax.evaluate --workdir runs/quickstart --token_picture tokens.png

The configuration is the workdir's; --config.k=v changes it, as in
--config.data.data_dir=... on another machine, or --config.data.eval_split=train.
"""

import pathlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from vt_flax import cli
from vt_flax.errors import UserError
from vt_flax.training.checkpoint import Checkpoints, read_config
from vt_flax.training.config import resolve
from vt_flax.training.evaluation import evaluate
from vt_flax.training.loop import weights_of
from vt_flax.training.run import prepare
from vt_flax.training.step import make_eval_step


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = cli.make_parser("evaluate", __doc__)
    parser.add_argument("--workdir", required=True, metavar="FOLDER")
    parser.add_argument("--step", type=int, help="default: the newest checkpoint")
    parser.add_argument(
        "--token_picture",
        metavar="FILE.png",
        help="also draw the token coefficients over a few images",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    args, overrides = parser.parse_known_args(argv)

    workdir = cli.local_folder("--workdir", args.workdir)
    config = resolve(ConfigDict(read_config(workdir)), overrides)
    run = prepare(config)
    checkpoints = Checkpoints(workdir, read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint yet")
    step = steps[-1] if args.step is None else args.step
    if step not in steps:
        raise UserError(
            f"{workdir} has no checkpoint of step {step}: choose from "
            f"{', '.join(map(str, steps))}"
        )
    try:
        state = checkpoints.restore(run.abstract_state(), step)
    except UserError as error:
        raise UserError(
            f"{error}; name another of {', '.join(map(str, steps))} by --step"
        ) from error
    finally:
        checkpoints.close()

    eval_step = jax.jit(make_eval_step(run.model, config))
    weights = weights_of(state)
    results = evaluate(eval_step, weights, run.eval_source, config, run.mesh)
    cli.print_results(
        results, args.format, f"{run.eval_source.name}, step {step:,} of {workdir}"
    )
    if args.token_picture:
        # matplotlib takes a while to import: only who wants a picture waits for it.
        from vt_flax.analysis.plots import draw_tokens

        params, batch_stats = weights["ema" if "ema" in weights else "raw"]
        draw_tokens(
            pathlib.Path(args.token_picture),
            run.model,
            {"params": params, "batch_stats": batch_stats},
            run.eval_source,
            config,
        )


if __name__ == "__main__":
    cli.run(main)
