"""What a training step costs, and the augmentation's share of it.

`python -m vt_flax.analysis.step_cost` is the part that runs in a process of its own: it
reads a request as JSON and prints the costs on a topology.
"""

import collections
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import batch_sharding, make_mesh, state_sharding, to_global
from vt_flax.parallel.topology import compile_apart, tpu_devices
from vt_flax.training.checkpoint import abstract_like
from vt_flax.training.config import resolve
from vt_flax.training.optimizer import make_optimizer
from vt_flax.training.run import model_for
from vt_flax.training.state import create_state
from vt_flax.training.step import compile_train_step
from vt_flax.training.tasks import task_of
from vt_flax.training.teacher import find_teacher

# Classes where the configuration leaves them to a dataset, which is not opened here.
CLASSES = 1000
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute")
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
        self._mesh, self._batch = mesh, batch
        teacher = find_teacher(config)
        model = model_for(config, len(teacher.class_names) if teacher else CLASSES)
        self._task = task_of(config)(config, [""] * model.num_classes)
        # The rate is no part of what a step costs.
        optimizer = make_optimizer(config.optimizer, lambda step: 1e-3)
        size = self._task.input_size(config)
        self._create = lambda: create_state(
            model, optimizer, size, config.seed, ema=bool(config.ema.decay)
        )
        self._shapes = jax.eval_shape(self._create)
        self._teacher_shapes = teacher.shapes(size) if teacher else None
        self._step = compile_train_step(
            model,
            self._task,
            optimizer,
            lambda step: 1e-3,
            config,
            mesh,
            self._shapes,
            teacher,
        )

    def compile(self) -> Any:
        """Compiles the step for the mesh's devices, which need not be there."""
        state, teacher = (
            abstract_like(shapes, state_sharding(self._mesh, shapes))
            for shapes in (self._shapes, self._teacher_shapes)
        )
        batch = {
            key: jax.ShapeDtypeStruct(
                value.shape, value.dtype, sharding=batch_sharding(self._mesh)
            )
            for key, value in self._noise().items()
        }
        return self._step.lower(state, batch, teacher).compile()

    def start(self) -> None:
        """Puts a state and a batch on the devices, and runs a first step."""

        def spread(create: Callable[[], Any], shapes: Any) -> Any:
            shardings = state_sharding(self._mesh, shapes)
            return jax.jit(create, out_shardings=shardings)()

        self.state = spread(self._create, self._shapes)
        # Nor are a teacher's weights.
        self._teacher = spread(
            lambda: jax.tree.map(jnp.zeros_like, self._teacher_shapes),
            self._teacher_shapes,
        )
        self._images = to_global(self._noise(), self._mesh)
        self.seconds()

    def seconds(self) -> float:
        """Returns how long a step takes."""
        begin = time.perf_counter()
        self.state, metrics = self._step(self.state, self._images, self._teacher)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - begin

    def _noise(self) -> dict[str, np.ndarray]:
        return {
            **self._task.noise(self._batch),
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
    on, off = _costs([config, without_augmentation(config)], topology, chip)
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


def collective_rows(
    config: ConfigDict, topology: str, chip: int
) -> list[dict[str, Any]]:
    """Counts the collectives of a compiled step by the span of batch normalisation.

    Spans: all examples; those of a chip, of two and of four chips; frozen.

    Args:
      config: a resolved configuration.
      topology: such as `v5e:2x4`.
      chip: examples on each chip.

    Raises:
      UserError: if libtpu is not there, or cannot compile the step, or the model has no
        span.
    """
    if "norm_span" not in config.model:
        raise UserError(f"model {config.model.name} has no norm_span")
    spans = {
        "global": "all examples",
        "frozen": "none: running statistics",
        str(chip): "groups on one chip",
        str(2 * chip): "groups on two chips",
        str(4 * chip): "groups on four chips",
    }
    configs = []
    for span in spans:
        changed = config.copy_and_resolve_references()
        changed.model.norm_span = span
        configs.append(changed)
    costs = _costs(configs, topology, chip)
    return [
        {
            "norm_span": span,
            "statistics over": meaning,
            **{name: cost["collectives"].get(name, 0) for name in COLLECTIVES},
        }
        for (span, meaning), cost in zip(spans.items(), costs, strict=True)
    ]


def _costs(
    configs: Sequence[ConfigDict], topology: str, chip: int
) -> list[dict[str, Any]]:
    """Returns what the TPU compiler makes of the steps of some configurations."""
    request = {
        "configs": [config.to_dict() for config in configs],
        "topology": topology,
        "chip": chip,
    }
    return compile_apart("vt_flax.analysis.step_cost", request, len(configs))


def _row(what: str, on: float, off: float, ratio: float | None = None):
    return {
        "what": what,
        "with": float(f"{on:.4g}"),
        "without": float(f"{off:.4g}"),
        "ratio": round(float(on / off if ratio is None else ratio), 4),
    }


def _compile(request: dict[str, Any]) -> list[dict[str, Any]]:
    costs = []
    devices = tpu_devices(request["topology"])
    for values in request["configs"]:
        config = resolve(ConfigDict(values))
        mesh = make_mesh(devices, config.parallel.fsdp)
        compiled = Step(config, mesh, request["chip"] * mesh.size).compile()
        cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
        program = compiled.as_text()
        costs.append(
            {
                "flops": cost["flops"],
                "bytes": cost["bytes accessed"],
                "temporary": memory.temp_size_in_bytes,
                "cycles": _estimated_cycles(program),
                "collectives": count_collectives(program),
            }
        )
    return costs


def count_collectives(program: str) -> dict[str, int]:
    """Returns how many of each of COLLECTIVES a compiled program has.

    One that is started and finished apart counts once; one over many arrays at a time
    is one.
    """
    found = re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", program)
    return dict(collections.Counter(found))


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
