"""Evaluation over every example of a split exactly once."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.data import pipeline
from vt_flax.data.source import Source
from vt_flax.errors import UserError
from vt_flax.parallel.mesh import own_rows, to_global


def eval_batch_size(config: ConfigDict, mesh: Mesh) -> int:
    """Returns the batch size of evaluation, brought up to a multiple of the devices."""
    size = config.eval.batch_size or config.batch_size
    return -(-size // mesh.size) * mesh.size


def evaluate(
    eval_step: Callable[[Any, Any, dict], dict],
    weights: dict[str, tuple[Any, Any]],
    source: Source,
    config: ConfigDict,
    mesh: Mesh,
) -> dict[str, dict[str, float]]:
    """Evaluates one or more sets of weights in one pass over the images.

    Args:
      eval_step: see `step.make_eval_step`, compiled.
      weights: parameters and batch statistics, by a name such as `raw` or `ema`.
      source: the split.
      config: the whole configuration.
      mesh: the devices.

    Returns:
      For each name `examples`, `skipped` (those that are unreadable, which count for
      nothing), `top1` and `top5` in percent, and `loss`.

    Raises:
      UserError: for an unreadable example, unless `config.data.on_error` is skip.
      RuntimeError: if another number of examples was counted than the split has.
    """
    totals: dict[str, dict[str, float]] = {name: {} for name in weights}
    held: list[tuple[str, dict]] = []

    def add() -> None:
        # Fetched a batch late: the devices never wait for the host's sum.
        while held:
            name, counts = held.pop()
            for key, value in jax.device_get(counts).items():
                totals[name][key] = totals[name].get(key, 0) + value.item()

    size = eval_batch_size(config, mesh)
    batches = pipeline.eval_batches(
        source,
        config.data,
        batch=size,
        part=jax.process_index(),
        parts=jax.process_count(),
        own=own_rows(mesh, size),
    )
    for batch in batches:
        images = to_global(batch, mesh)
        new = [
            (name, eval_step(params, batch_stats, images))
            for name, (params, batch_stats) in weights.items()
        ]
        add()
        held.extend(new)
    add()

    results = {}
    for name, total in totals.items():
        examples, skipped = total["examples"], total["skipped"]
        if examples + skipped != len(source):
            raise RuntimeError(
                f"evaluated {examples} and skipped {skipped} of the {len(source)} "
                f"examples of {source.name}"
            )
        if not examples:
            raise UserError(f"{source.name}: not one example is readable")
        results[name] = {
            "examples": examples,
            "skipped": skipped,
            "top1": 100 * total["top1"] / examples,
            "top5": 100 * total["top5"] / examples,
            "loss": total["loss"] / examples,
        }
    return results
