"""Plans: cost and speed of a configuration on a topology that need not be there."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.plan.cache import PlanCache, cache_key
from vt_flax.plan.compiled_step import excess, pod_costs
from vt_flax.plan.dataset_facts import Facts
from vt_flax.plan.roofline import Roofline, roofline
from vt_flax.plan.topology import Topology
from vt_flax.training.config_rules import check_step
from vt_flax.training.durations import duration_steps


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration to plan on a topology.

    Attributes:
      place: the topology.
      make: returns the resolved configuration for a global batch size.
      batch: batch size, over all devices.
      facts: of the dataset.
      swept: what a sweep has set, as the user wrote it.
    """

    place: Topology
    make: Callable[[int], ConfigDict]
    batch: int
    facts: Facts
    swept: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """What tells it from others."""
        words = [f"{key} {value}" for key, value in self.swept.items()]
        return ", ".join([self.place.name, *words])


@dataclasses.dataclass(frozen=True)
class Plan:
    """The result for a case.

    Attributes:
      case: what was planned.
      costs: of a device and a step, see `step_costs.read_costs`.
      roofline: its bounds.
      steps: of the whole run; 0 if the dataset's size is not known.
      measured: seconds of a step, where one was run.
    """

    case: Case
    costs: Mapping[str, Any]
    roofline: Roofline
    steps: int
    measured: float = 0.0

    def images_per_second(self, seconds: float) -> float:
        """Returns images a second of all chips, at some seconds a step."""
        return self.case.batch / seconds

    def hours(self, seconds: float) -> float | None:
        """Returns hours of the run's steps; None if their number is not known."""
        return self.steps * seconds / 3600 if self.steps else None


def does_not_fit(
    case: Case, needed: int, available: int, advice: str = ""
) -> UserError:
    """Returns the error of a step that needs more memory than a device has.

    Args:
      case: what was planned.
      needed: bytes; 0 if that is not known.
      available: bytes.
      advice: what to do, after a semicolon.
    """
    return UserError(
        f"--topology {case.place.name}: batch {case.batch:,} "
        f"({case.batch // case.place.chips:,} a chip) needs "
        f"{excess(needed, available)}{advice}"
    )


def _batch(case: Case, batch: int) -> str:
    """Returns a batch size in words."""
    return f"{batch:,} ({batch // case.place.chips:,} a chip)"


def make_plan(
    case: Case, cache: PlanCache, host_rate: float = 0.0, search: bool = True
) -> Plan:
    """Compiles a case's step, if it was not before, and returns the plan.

    Args:
      case: what to plan.
      cache: of costs.
      host_rate: see `roofline`.
      search: whether to look for the largest batch that fits, where this one does not.

    Raises:
      UserError: if the batch cannot be sharded, or the step not be compiled; if it does
        not fit.
    """
    check_step(case.make(case.batch), case.place.devices)
    costs = _costs(case, case.batch, cache)
    if "too_large" not in costs:
        return finish(case, costs, host_rate)
    needed, available = (costs["too_large"][key] for key in ("needed", "available"))
    advice = ""
    if search:
        unit = _unit(case)

        def memory(units: int) -> tuple[bool, int]:
            found = _costs(case, units * unit, cache)
            if "too_large" in found:
                return False, found["too_large"]["needed"]
            return True, found["memory"]["peak"]

        advice = _advice(
            case, unit, largest(memory, case.batch // unit, needed, available)
        )
    raise does_not_fit(case, needed, available, advice)


def finish(
    case: Case, costs: Mapping[str, Any], host_rate: float, measured: float = 0.0
) -> Plan:
    """Returns the plan of a case whose costs are known."""
    config = case.make(case.batch)
    examples = case.facts.examples
    steps = 0
    if examples or "step" in config.duration:
        steps = duration_steps(
            config.duration, examples=examples or 1, batch=case.batch
        )
    bounds = roofline(costs, case.place, case.batch, host_rate)
    return Plan(case, costs, bounds, steps, measured)


def largest(
    memory: Callable[[int], tuple[bool, int]], high: int, needed: int, available: int
) -> tuple[int, int]:
    """Returns a number of units that fits, and a larger one that does not.

    Between them lies a sixteenth of the second at most: each try takes minutes. Memory
    grows about linearly, until the compiler begins to save some, so that a number is
    guessed by what two others need; after some guesses the interval is halved instead.

    Args:
      memory: tells of a number whether it fits, and its bytes, 0 for not known.
      high: a number that does not fit.
      needed: its bytes; 0 for not known.
      available: bytes that there are; 0 for not known.

    Returns:
      Both; the first is 0 where not even 1 fits.
    """
    low, tries = 0, 0
    known = {high: needed} if needed else {}
    while high - low > (step := max(1, high // 16)):
        guess = (low + high) // 2
        if known and available and tries < 4 and high - low > 2 * step:
            guess = _crossing(known, available)
            guess = min(max(guess, low + step), high - step)
        # Numbers that divide well, as those that are trained with: chips compute others
        # in another way, which takes longer to compile.
        whole = 1 << (step.bit_length() - 1)
        guess = max(guess // whole * whole, low + whole)
        fits, found = memory(guess)
        if found:
            known[guess] = found
        low, high = (guess, high) if fits else (low, guess)
        tries += 1
    return low, high


def _advice(case: Case, unit: int, found: tuple[int, int]) -> str:
    """Returns in words which batch sizes fit, by the result of `largest`."""
    told = [_batch(case, units * unit) for units in found]
    if not found[0]:
        return f"; not even a batch of {told[1]} fits"
    if found[1] - found[0] == 1:
        return f"; the largest batch that fits is {told[0]}"
    return (
        f"; the largest batch that fits is between {told[0]}, which does, and {told[1]}"
    )


def _crossing(known: Mapping[int, int], available: int) -> int:
    """Returns where the line through the two nearest numbers reaches what there is."""
    by_distance = sorted(known, key=lambda units: abs(known[units] - available))
    # Of one alone, as if all it needs grew with it.
    points = {0: 0, **known} if len(known) == 1 else known
    x, y = by_distance[0], (by_distance + [0])[1]
    slope = (points[x] - points[y]) / (x - y)
    if slope <= 0:
        return (x + y) // 2
    return math.floor(x + (available - points[x]) / slope)


def _unit(case: Case) -> int:
    """Returns what batch sizes are multiples of: microbatches of whole groups."""
    config, twice = case.make(case.batch), case.make(2 * case.batch)
    group_size = config.model.bn_group_size
    fixed = group_size == twice.model.bn_group_size
    least = math.lcm(case.place.devices, (fixed and group_size) or 1)
    return least * config.grad_accum_steps


def _costs(case: Case, batch: int, cache: PlanCache) -> dict[str, Any]:
    config = case.make(batch)
    place = case.place.name
    key = None
    # A teacher's network lies in a workdir, which may be another one by now.
    if not config.distillation.teacher:
        key = cache_key(config, place)
        if found := cache.get(key):
            _tell(f"{case.label}, batch {batch:,}: compiled before")
            return found
    _tell(f"{case.label}, batch {batch:,}: {config.model.name}")
    (found,) = pod_costs([config], place)
    if key:
        cache.put(key, found)
    return found


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
