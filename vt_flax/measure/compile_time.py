"""How long compiling a training step takes, and what the program needs of memory.

`python -m vt_flax.measure.compile_time` is the part that runs in a process of its own,
to which nothing has been compiled yet: it reads a request as JSON, compiles, and prints
what that took.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.steps import STEPS
from vt_flax.plan.tpu_compiler import read_request
from vt_flax.training.config import resolve
from vt_flax.training.config_rules import check_step

HIT = "/jax/compilation_cache/cache_hits"


def compile_costs(name: str, config: ConfigDict, batch: int) -> dict[str, Any]:
    """Compiles a step twice, each time in a new process, with a cache of their own.

    Args:
      name: whose step, of `steps.STEPS`.
      config: a resolved configuration.
      batch: examples in a step, over all devices.

    Returns:
      Seconds: `trace_s` to trace it, `compile_s` to compile it with nothing in the
      cache, and `cached_s` to get it from the cache, None where that did not hold it.
      MB of each device: `arguments_mb` of state and batch, `working_mb` beside them as
      the compiler plans it, and `peak_mb` that was taken while it ran, None where the
      device does not tell.

    Raises:
      UserError: if there is no such step.
      RuntimeError: if a process fails, as where the memory does not suffice.
    """
    request = {"name": name, "config": config.to_dict(), "batch": batch}
    with tempfile.TemporaryDirectory() as cache:
        first = _apart(request | {"run": True}, cache)
        second = _apart(request | {"run": False}, cache)
    first["cached_s"] = second["compile_s"] if second["cached"] else None
    del first["cached"]
    return first


def _apart(request: dict[str, Any], cache: str) -> dict[str, Any]:
    settings = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if devices := request["config"]["parallel"]["cpu_devices"]:
        settings["JAX_NUM_CPU_DEVICES"] = str(devices)
    done = subprocess.run(
        [sys.executable, "-m", "vt_flax.measure.compile_time"],
        input=json.dumps(request),
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip() or f"status {done.returncode}").split("\n")[-1]
        raise (UserError if done.returncode == UserError.status else RuntimeError)(
            reason
        )
    return json.loads(done.stdout.splitlines()[-1])


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    config = resolve(ConfigDict(request["config"]))
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    check_step(config, mesh.size)
    step = STEPS[request["name"]](config, mesh, request["batch"])
    hits = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event == HIT else None
    )
    begin = time.perf_counter()
    lowered = step.trace().lower()
    traced = time.perf_counter()
    before = len(hits)
    compiled = lowered.compile()
    found = {
        "trace_s": traced - begin,
        "compile_s": time.perf_counter() - traced,
        "cached": len(hits) > before,
    }
    if request["run"]:
        memory = compiled.memory_analysis()
        found["arguments_mb"] = memory.argument_size_in_bytes / 1e6
        found["working_mb"] = memory.temp_size_in_bytes / 1e6
        found["peak_mb"] = None
        # CPUs tell nothing.
        if mesh.local_devices[0].memory_stats() is not None:
            step.start()
            step.seconds(2)
            stats = [device.memory_stats() for device in mesh.local_devices]
            found["peak_mb"] = max(x["peak_bytes_in_use"] for x in stats) / 1e6
    return found


if __name__ == "__main__":
    try:
        print(json.dumps(_compile(read_request())))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
