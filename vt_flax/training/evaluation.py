"""Evaluation over every example of a split exactly once."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.data.batches import eval_batches
from vt_flax.errors import UserError
from vt_flax.parallel import processes
from vt_flax.parallel.mesh import local_indices, to_global
from vt_flax.training.moments import Moments, merge
from vt_flax.training.requests import NONE, STOP, Requests
from vt_flax.training.run import Run

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


class Evaluation(NamedTuple):
    """Results of a split.

    Attributes:
      results: for each set of weights `examples`, `skipped` (number of unreadable ones,
        which are not counted), and the task's results.
      notes: on the split, to print beside the results.
    """

    results: dict[str, dict[str, float | None]]
    notes: list[str]


def evaluate(
    run: Run, eval_step: EvalStep, weights: Weights, requests: Requests
) -> Evaluation | None:
    """Evaluates one or more sets of weights in one pass: see `split_totals`."""
    totals = split_totals(run, eval_step, weights, requests)
    if totals is None:
        return None
    results = {
        name: {k: total[k] for k in ("examples", "skipped")} | run.task.results(total)
        for name, total in totals.items()
    }
    # Notes are on the labels, which are the same for all weights.
    return Evaluation(results, run.task.notes(next(iter(totals.values()))))


def split_totals(
    run: Run, eval_step: EvalStep, weights: Weights, requests: Requests
) -> Totals | None:
    """Sums the counts of a step over the evaluation split, every example exactly once.

    `eval_step` returns `examples`, `skipped`, `request` and any other counts, which are
    the same on every process: arrays are summed, and `Moments` merged.

    Returns:
      None if a request to stop ended it, on all processes after the same batch.
      Otherwise for each name `examples` and `skipped`, int, and the totals of all other
      counts, 64-bit NumPy.

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
            images = to_global(batch, mesh) | requests.batch()
            counts = {
                name: eval_step(params, batch_stats, images)
                for name, (params, batch_stats) in weights.items()
            }
            # A batch late, so that the devices never wait for the sum.
            if _add_counts(totals, pending) == STOP:
                return None
            pending = counts
            processes.report(f"evaluating, batch {i + 1:,}: waiting for its examples")
    if _add_counts(totals, pending) == STOP:
        return None

    for total in totals.values():
        examples, skipped = (total[key].item() for key in ("examples", "skipped"))
        assert examples + skipped == len(source), (examples, skipped, len(source))
        if not examples:
            raise UserError(f"{source.name}: not one example is readable")
        total |= {"examples": examples, "skipped": skipped}
    return totals


def _add_counts(totals: Totals, counts: dict[str, dict]) -> int:
    """Fetches the counts of a batch and adds them; returns the batch's request."""
    request = NONE
    for name, values in jax.device_get(counts).items():
        request = values.pop("request").item()
        for key, value in values.items():
            totals[name][key] = _add(totals[name].get(key), value)
    return request


def _add(total: Any, value: Any) -> Any:
    """Adds a batch's count to a total, which is None before the first batch."""
    if isinstance(value, Moments):
        return merge(total or Moments(*map(np.zeros_like, value)), value)
    # Wide enough for the number of pixels in a split.
    value = value.astype(np.int64 if value.dtype.kind == "i" else np.float64)
    return value if total is None else total + value
