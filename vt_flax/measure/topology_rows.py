"""Costs that the TPU compiler counts in a training step, and in plain ResNets'."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vt_flax.measure.step_tables import short
from vt_flax.plan.collectives import KINDS
from vt_flax.plan.compiled_step import costs
from vt_flax.plan.roofline import roofline
from vt_flax.plan.steps import OURS
from vt_flax.plan.topology import parse_topology


def topology_rows(
    config: ConfigDict, references: Sequence[str], topology: str
) -> list[dict[str, Any]]:
    """Compiles the step and its references for a topology. Nothing is run.

    Args:
      config: a resolved configuration; `batch_size` is sharded over all devices.
      references: names of `steps.STEPS`.
      topology: such as `v5e:2x4`.

    Returns:
      A record for each: GFLOP and MB per image as the compiler counts them, which
      includes what it keeps in on-chip memory; MB per image to and from HBM; a chip's
      images/s at most, by `roofline`; a device's GB of working memory, without state
      and batch; and the number of collectives. `ours_bytes` and `ours_main_bytes` are
      our bytes as multiples of the record's.

    Raises:
      UserError: if libtpu is missing, or cannot compile a step.
    """
    names = (OURS, *references)
    place, batch = parse_topology(topology), config.batch_size
    images = batch / place.devices
    found = costs([config] * len(names), topology, names)
    return [
        {
            "step": name,
            "gflop_an_image": short(cost["flops"] / 1e9 / images),
            "mb_an_image": short(cost["bytes"] / 1e6 / images),
            "ours_bytes": round(found[0]["bytes"] / cost["bytes"], 3),
            "main_mb_an_image": short(cost["traffic"] / 1e6 / images),
            "ours_main_bytes": round(found[0]["traffic"] / cost["traffic"], 3),
            "bound_images_per_second": short(
                batch / place.chips / roofline(cost, place, batch).bound
            ),
            "working_gb": short(cost["temporary"] / 1e9),
            **{
                kind: cost["collectives"].get(kind, {"count": 0})["count"]
                for kind in KINDS
            },
        }
        for name, cost in zip(names, found, strict=True)
    ]
