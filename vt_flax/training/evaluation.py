"""Evaluation over every example of a split exactly once."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.data.batches import eval_batches
from vt_flax.errors import UserError
from vt_flax.parallel import processes
from vt_flax.parallel.mesh import local_indices, to_global
from vt_flax.training.moments import Moments, merge
from vt_flax.training.run import Run
from vt_flax.training.workdir import Results

# Maps parameters, batch statistics and a batch to counts.
EvalStep = Callable[[Any, Any, dict], dict]
# Parameters and batch statistics by a name such as `raw` or `ema`.
Weights = dict[str, tuple[Any, Any]]
# Sums over a split by the name of the weights.
Totals = dict[str, dict[str, Any]]


def eval_batch_size(config: ConfigDict, mesh: Mesh) -> int:
    """Returns the batch size of evaluation, rounded up to a multiple of the devices."""
    size = config.eval.batch_size or config.batch_size
    return -(-size // mesh.size) * mesh.size


def evaluate(run: Run, eval_step: EvalStep, weights: Weights) -> Results:
    """Evaluates one or more sets of weights in one pass; see `split_totals`.

    Returns:
      For each set of weights `examples`, `skipped` (number of unreadable ones, which
      are not counted), and the task's results.
    """
    return {
        name: {k: total[k] for k in ("examples", "skipped")} | run.task.results(total)
        for name, total in split_totals(run, eval_step, weights).items()
    }


def split_totals(run: Run, eval_step: EvalStep, weights: Weights) -> Totals:
    """Sums the counts of a step over the evaluation split, every example exactly once.

    `eval_step` returns `examples`, `skipped` and any other counts, which are the same
    on every process: arrays are summed, and `Moments` merged.

    Returns:
      For each name `examples` and `skipped`, int, and the totals of all other counts,
      64-bit NumPy.

    Raises:
      UserError: for an unreadable example, unless `data.on_error` is skip, and if none
        is readable.
    """
    mesh, source = run.mesh, run.eval_source
    size = eval_batch_size(run.config, mesh)
    totals: Totals = {name: {} for name in weights}
    pending: dict[str, dict] = {}
    batches = eval_batches(
        source,
        run.config.data,
        batch=size,
        local_indices=local_indices(mesh, size),
        decoder=run.task.decoder(source, train=False),
    )
    with contextlib.closing(batches):
        processes.report("evaluating: waiting for its examples")
        for i, batch in enumerate(batches, 1):
            processes.report(f"evaluating, batch {i:,}: waiting for the devices")
            batch = to_global(batch, mesh)
            counts = {
                name: eval_step(params, batch_stats, batch)
                for name, (params, batch_stats) in weights.items()
            }
            # A batch late, so that the devices never wait for the sum.
            _add_counts(totals, pending)
            pending = counts
            processes.report(f"evaluating, batch {i + 1:,}: waiting for its examples")
    _add_counts(totals, pending)

    for total in totals.values():
        examples, skipped = (total[key].item() for key in ("examples", "skipped"))
        assert examples + skipped == len(source), (examples, skipped, len(source))
        if not examples:
            raise UserError(f"{source.name}: not one example is readable")
        total |= {"examples": examples, "skipped": skipped}
    return totals


def _add_counts(totals: Totals, counts: dict[str, dict]) -> None:
    """Fetches the counts of a batch and adds them."""
    for name, values in jax.device_get(counts).items():
        for key, value in values.items():
            totals[name][key] = _add(totals[name].get(key), value)


def _add(total: Any, value: Any) -> Any:
    """Adds a batch's count to a total, which is None before the first batch."""
    if isinstance(value, Moments):
        return merge(total or Moments(*map(np.zeros_like, value)), value)
    # Wide enough for the number of pixels in a split.
    value = value.astype(np.int64 if value.dtype.kind == "i" else np.float64)
    return value if total is None else total + value
