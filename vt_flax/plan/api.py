"""Plans from Python, as `vt_flax plan --format json` makes them."""

from collections.abc import Sequence
from typing import Any

from vt_flax.paths import typed_path
from vt_flax.plan.cache import FOLDER, PlanCache
from vt_flax.plan.cases import make_cases
from vt_flax.plan.planning import plan_pod
from vt_flax.plan.report import record
from vt_flax.plan.topology import parse_topology


def plan(
    config: str,
    topologies: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    examples: int = 0,
) -> list[dict[str, Any]]:
    """Compiles a training step for TPU pods, and returns its cost and speed.

    Args:
      config: a configuration file, as in `configs/imagenet.py:vt_resnet18`.
      topologies: pods, such as `v5e:4x4`.
      overrides: arguments such as `--config.batch_size=64`.
      examples: number of examples in an epoch, where the dataset is not prepared.

    Returns:
      For each topology its bounds (keys `bound_...`) and estimates (`estimate_...`) of
      seconds per step, images per second, hours and chip-hours, and the memory of a
      device in bytes (`memory_...`).

    Raises:
      UserError: for bad input, a batch that does not fit, or without the TPU compiler.
    """
    places = [lambda _, place=parse_topology(name): place for name in topologies]
    cases = make_cases(config, overrides, places, [{}], examples=examples)
    cache = PlanCache(typed_path(FOLDER))
    return [record(plan_pod(case, cache)) for case in cases]
