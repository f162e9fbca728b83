"""What a training step costs, and the augmentation's share of it.

`python -m vt_flax.analysis.step_cost` is the part that runs in a process of its own: it
reads a request as JSON and prints the costs on a topology.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import batch_sharding, make_mesh, state_sharding, to_global
from vt_flax.parallel.topology import ENVIRONMENT, has_tpu_compiler, tpu_devices
from vt_flax.training.checkpoint import abstract_like
from vt_flax.training.config import resolve
from vt_flax.training.optimizer import make_optimizer
from vt_flax.training.run import model_for
from vt_flax.training.state import create_state
from vt_flax.training.step import compile_train_step

# Classes where the configuration leaves them to a dataset, which is not opened here.
CLASSES = 1000
OFF = {"augment": "none", "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}


def without_augmentation(config: ConfigDict) -> ConfigDict:
    """Returns a configuration with mirroring and nothing else."""
    plain = config.copy_and_resolve_references()
    plain.unlock()
    plain.data.update(OFF)
    plain.lock()
    return plain


class Step:
    """A training step of a configuration, on images that are noise.

    Args:
      config: a resolved configuration.
      mesh: devices, real ones or a topology's.
      batch: examples in a step, over all devices.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, batch: int):
        self._mesh, self._size, self._batch = mesh, config.data.image_size, batch
        model = model_for(config, CLASSES)
        # The rate is no part of what a step costs.
        optimizer = make_optimizer(config.optimizer, lambda step: 1e-3)
        self._create = lambda: create_state(
            model, optimizer, self._size, config.seed, ema=bool(config.ema.decay)
        )
        self._shapes = jax.eval_shape(self._create)
        self._step = compile_train_step(
            model, optimizer, lambda step: 1e-3, config, mesh, self._shapes
        )

    def compile(self) -> Any:
        """Compiles the step for the mesh's devices, which need not be there."""
        state = abstract_like(self._shapes, state_sharding(self._mesh, self._shapes))
        batch = {
            key: jax.ShapeDtypeStruct(
                value.shape, value.dtype, sharding=batch_sharding(self._mesh)
            )
            for key, value in self._noise().items()
        }
        return self._step.lower(state, batch).compile()

    def start(self) -> None:
        """Puts a state and a batch on the devices, and runs a first step."""
        shardings = state_sharding(self._mesh, self._shapes)
        self._state = jax.jit(self._create, out_shardings=shardings)()
        self._images = to_global(self._noise(), self._mesh)
        self.seconds()

    def seconds(self) -> float:
        """Returns how long a step takes."""
        begin = time.perf_counter()
        self._state, metrics = self._step(self._state, self._images)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - begin

    def _noise(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        shape = (self._batch, self._size, self._size, 3)
        return {
            "image": rng.integers(0, 256, shape, dtype=np.uint8),
            "label": np.zeros(self._batch, np.int32),
            "bad": np.zeros(self._batch, bool),
            "request": np.zeros(self._mesh.size, np.int32),
        }


def measured_rows(config: ConfigDict, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Times the step with and without augmentation on this machine's devices.

    Args:
      config: a resolved configuration.
      batch: examples in a step.
      rounds: steps of each, taken in turns: a machine's moods hit both.
    """
    configs = (config, without_augmentation(config))
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    steps = [Step(c, mesh, batch) for c in configs]
    for step in steps:
        step.start()
    times = np.asarray([[step.seconds() for step in steps] for _ in range(rounds)])
    on, off = np.median(times, 0)
    # The median of the ratios of neighbours in time, not the ratio of medians.
    ratio = statistics.median(times[:, 0] / times[:, 1])
    device = jax.devices()[0].device_kind
    return [_row(f"seconds a step of {batch}, {device}", on, off, ratio)]


def compiled_rows(config: ConfigDict, topology: str, chip: int) -> list[dict[str, Any]]:
    """Compares what the TPU compiler counts, with and without augmentation.

    Args:
      config: a resolved configuration.
      topology: such as `v5e:2x2`.
      chip: examples on each chip.

    Raises:
      UserError: if libtpu is not there, or cannot compile the step.
    """
    if not has_tpu_compiler():
        raise UserError('--topology needs libtpu: pip install "jax[tpu]"')
    request = {"config": config.to_dict(), "topology": topology, "chip": chip}
    # A process of its own: the compiler needs its own start of JAX, and may crash.
    done = subprocess.run(
        [sys.executable, "-m", "vt_flax.analysis.step_cost"],
        input=json.dumps(request),
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip() or f"status {done.returncode}").split("\n")[-1]
        raise UserError(f"--topology {topology}: {reason}")
    on, off = json.loads(done.stdout.splitlines()[-1])
    units = {
        "GFLOP an image": ("flops", 1e9 * chip),
        "MB an image": ("bytes", 1e6 * chip),
        "GB of memory at work": ("temporary", 1e9),
        "thousand cycles an image outside of kernels": ("cycles", 1e3 * chip),
    }
    return [
        _row(f"{name}, {topology}, {chip} a chip", on[key] / unit, off[key] / unit)
        for name, (key, unit) in units.items()
        if on[key] and off[key]
    ]


def _row(what: str, on: float, off: float, ratio: float | None = None):
    return {
        "what": what,
        "with": float(f"{on:.4g}"),
        "without": float(f"{off:.4g}"),
        "ratio": round(float(on / off if ratio is None else ratio), 4),
    }


def _compile(request: dict[str, Any]) -> list[dict[str, float]]:
    config = resolve(ConfigDict(request["config"]))
    mesh = make_mesh(tpu_devices(request["topology"]), config.parallel.fsdp)
    costs = []
    for c in (config, without_augmentation(config)):
        compiled = Step(c, mesh, request["chip"] * mesh.size).compile()
        cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
        costs.append(
            {
                "flops": cost["flops"],
                "bytes": cost["bytes accessed"],
                "temporary": memory.temp_size_in_bytes,
                "cycles": _estimated_cycles(compiled.as_text()),
            }
        )
    return costs


def _estimated_cycles(program: str) -> int:
    """Sums what the TPU compiler expects of its own fusions, the basis of its choices.

    Bytes and FLOPs do not show work that is neither, such as moving single pixels. Of
    a kernel there is no such estimate. 0 if the compiler says nothing.
    """
    entry = program[program.find("\nENTRY") :]
    found = re.findall(r'"estimated_cycles":\s*"(\d+)"', entry)
    return sum(int(cycles) for cycles in found)


if __name__ == "__main__":
    try:
        print(json.dumps(_compile(json.load(sys.stdin))))
    except UserError as error:
        sys.exit(str(error))
