"""Plans for the machine that is here, which can be checked against a measurement."""

import statistics
import sys
import time

from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.planning import Case, Plan, does_not_fit, finish
from vt_flax.plan.step import Step
from vt_flax.plan.step_costs import read_costs
from vt_flax.training.config_rules import check_step

# Steps are timed for so long, and at least so many.
SECONDS, STEPS = 10.0, 5


def plan_here(case: Case, host_rate: float = 0.0, measure: bool = False) -> Plan:
    """Compiles a case's step for this machine's devices, and runs it if asked to.

    Args:
      case: on a topology of `this_machine`.
      host_rate: see `roofline`.
      measure: whether to run the step, for its median time.

    Raises:
      UserError: if the batch cannot be sharded, or the step does not fit.
    """
    config = case.make(case.batch)
    check_step(config, case.place.devices)
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    told = f"{case.label}, batch {case.batch:,}: {config.model.name}"
    print(told, file=sys.stderr, flush=True)
    step = Step(config, mesh, case.batch)
    costs = read_costs(step)
    needed, available = costs["memory"]["peak"], case.place.chip.device.memory
    if needed > available:
        raise does_not_fit(case, needed, available)
    seconds = 0.0
    if measure:
        print("running it", file=sys.stderr, flush=True)
        step.start()
        begin, times = time.perf_counter(), []
        while len(times) < STEPS or time.perf_counter() - begin < SECONDS:
            times.append(step.seconds())
        seconds = statistics.median(times)
    return finish(case, costs, host_rate, seconds)
