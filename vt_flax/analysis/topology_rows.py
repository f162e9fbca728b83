"""What the TPU compiler counts in a training step, ours beside a plain one."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vt_flax.analysis.collectives import KINDS
from vt_flax.analysis.compiled_step import costs
from vt_flax.analysis.roofline import roofline
from vt_flax.analysis.step_tables import short
from vt_flax.analysis.steps import OURS
from vt_flax.analysis.topology import parse_topology


def topology_rows(
    config: ConfigDict, references: Sequence[str], topology: str, chip: int
) -> list[dict[str, Any]]:
    """Compiles the step and its references for a topology. Nothing is run.

    Args:
      config: a resolved configuration.
      references: names of `steps.STEPS`.
      topology: such as `v5e:2x4`.
      chip: examples on each chip.

    Returns:
      A record for each, of a chip: GFLOP and MB an image as the compiler counts them,
      which has what it keeps on the chip in it; MB an image to and from main memory;
      images/s at most, by `roofline`; GB of memory at work beside state and batch; and
      collectives in a step. `ours_bytes` and `ours_main_bytes` are our bytes as
      multiples of the record's.

    Raises:
      UserError: if libtpu is not there, or cannot compile a step.
    """
    names = (OURS, *references)
    place = parse_topology(topology)
    batch = chip * place.chips
    found = costs([config] * len(names), topology, chip, names)
    return [
        {
            "step": name,
            "gflop_an_image": short(cost["flops"] / 1e9 / chip),
            "mb_an_image": short(cost["bytes"] / 1e6 / chip),
            "ours_bytes": round(found[0]["bytes"] / cost["bytes"], 3),
            "main_mb_an_image": short(cost["traffic"] / 1e6 / chip),
            "ours_main_bytes": round(found[0]["traffic"] / cost["traffic"], 3),
            "bound_images_per_second": short(chip / roofline(cost, place, batch).bound),
            "working_gb": short(cost["temporary"] / 1e9),
            **{
                kind: cost["collectives"].get(kind, {"count": 0})["count"]
                for kind in KINDS
            },
        }
        for name, cost in zip(names, found, strict=True)
    ]
