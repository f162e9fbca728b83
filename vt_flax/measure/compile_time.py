"""Compile time of a training step, and the memory that the program needs.

`python -m vt_flax.measure.compile_time` is the child process, in which nothing has been
compiled yet: it reads a request as JSON, compiles, and prints the costs as JSON.
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
from vt_flax.plan.step import Step
from vt_flax.plan.tpu_compiler import read_request
from vt_flax.training.config import resolve
from vt_flax.training.config_rules import check_step

COSTS = ("trace_s", "compile_s", "cached_s", "arguments_mb", "working_mb", "peak_mb")
CACHE_HIT = "/jax/compilation_cache/cache_hits"


def compile_costs(config: ConfigDict, batch: int) -> dict[str, Any]:
    """Compiles a step twice, each time in a new process, with a cache of their own.

    Args:
      config: a resolved configuration.
      batch: batch size, over all devices.

    Returns:
      Seconds: `trace_s` to trace the step, `compile_s` to compile it with an empty
      cache, and `cached_s` to load it from the cache; None if it was not there.
      MB of each device: `arguments_mb` of state and batch, `working_mb` beside them as
      the compiler plans it, and `peak_mb` while it ran; None where the device does not
      report it.

    Raises:
      UserError: if there is no such step.
      RuntimeError: if a process fails, for example for lack of memory.
    """
    request = {"config": config.to_dict(), "batch": batch}
    with tempfile.TemporaryDirectory() as cache:
        first = _run_child(request | {"run": True}, cache)
        second = _run_child(request | {"run": False}, cache)
    first["cached_s"] = second["compile_s"] if second["cached"] else None
    return {key: first[key] for key in COSTS}


def _run_child(request: dict[str, Any], cache: str) -> dict[str, Any]:
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
    step = Step(config, mesh, request["batch"])
    hits = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event == CACHE_HIT else None
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
        # CPUs report no memory statistics.
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
