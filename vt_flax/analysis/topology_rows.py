"""What the TPU compiler counts in a training step, ours beside a plain one."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vt_flax.analysis.collectives import KINDS
from vt_flax.analysis.compiled_step import costs
from vt_flax.analysis.step_tables import short
from vt_flax.analysis.steps import OURS


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
      A record for each, of a chip: GFLOP and MB of memory traffic an image, GB of
      memory at work beside state and batch, and collectives in a step. `ours_bytes` is
      our traffic as a multiple of the record's.

    Raises:
      UserError: if libtpu is not there, or cannot compile a step.
    """
    names = (OURS, *references)
    found = costs([config] * len(names), topology, chip, names)
    return [
        {
            "step": name,
            "gflop_an_image": short(cost["flops"] / 1e9 / chip),
            "mb_an_image": short(cost["bytes"] / 1e6 / chip),
            "ours_bytes": round(found[0]["bytes"] / cost["bytes"], 3),
            "working_gb": short(cost["temporary"] / 1e9),
            **{
                kind: cost["collectives"].get(kind, {"count": 0})["count"]
                for kind in KINDS
            },
        }
        for name, cost in zip(names, found, strict=True)
    ]
