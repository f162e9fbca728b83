"""A training step on noise, to compile for devices or to time on them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.models import model_task
from vt_flax.parallel.mesh import batch_sharding, state_sharding, to_global
from vt_flax.training.optimizer import make_optimizer
from vt_flax.training.run import model_for
from vt_flax.training.state import TrainState, abstract_like, create_state
from vt_flax.training.step import compile_train_step
from vt_flax.training.tasks import task_of
from vt_flax.training.teacher import find_teacher
from vt_flax.training.weights import variable_shapes

# Number of classes where the configuration leaves it to the dataset, which is not
# opened here: those of ImageNet and ADE20K.
CLASSES = {"classification": 1000, "segmentation": 150}
# The value does not change what a step costs.
LEARNING_RATE = 1e-3


@dataclasses.dataclass
class MeshStep:
    """A jitted training step with its arguments on a mesh.

    Once it is started, `state` is the newest state.

    Attributes:
      mesh: devices, real ones or a topology's.
      batch: batch size, over all devices.
      model: the network.
      size: height and width of the training images.
      step: `step(state, batch, teacher) -> state, metrics`, jitted; the state is
        donated.
      create: makes the state at step 0.
      noise: makes a batch of a number of examples; `request`, if present, has an
        element for each device.
      teacher: shapes of a teacher's variables; None without one.
    """

    mesh: Mesh
    batch: int
    model: nn.Module
    size: tuple[int, int]
    step: Callable[..., tuple[TrainState, Any]]
    create: Callable[[], TrainState]
    noise: Callable[[int], dict[str, np.ndarray]]
    teacher: Any = None

    def arguments(self) -> tuple[TrainState, dict[str, Any], Any]:
        """Returns shapes and shardings of state, batch and a teacher's variables."""
        state, teacher = (
            abstract_like(shapes, state_sharding(self.mesh, shapes))
            for shapes in (jax.eval_shape(self.create), self.teacher)
        )
        batch = {}
        # Shapes from one example, since a pod's batch may not fit into memory here.
        for key, value in self.noise(1).items():
            size = len(value) if key == "request" else self.batch
            batch[key] = jax.ShapeDtypeStruct(
                (size, *value.shape[1:]),
                value.dtype,
                sharding=batch_sharding(self.mesh),
            )
        return state, batch, teacher

    def trace(self) -> Any:
        """Traces the step, to be compiled for the mesh's devices."""
        return self.step.trace(*self.arguments())

    def start(self, compiled: Callable[..., tuple[TrainState, Any]] | None = None):
        """Puts a state and a batch on the devices, and runs a first step.

        Args:
          compiled: the step, if it was compiled from `trace` already.
        """
        self.step = compiled or self.step

        def sharded(create: Callable[[], Any], shapes: Any) -> Any:
            shardings = state_sharding(self.mesh, shapes)
            return jax.jit(create, out_shardings=shardings)()

        self.state = sharded(self.create, jax.eval_shape(self.create))
        self._teacher = sharded(
            lambda: jax.tree.map(jnp.zeros_like, self.teacher),
            self.teacher,
        )
        self._images = to_global(self.noise(self.batch), self.mesh)
        self.seconds()

    def advance(self, batch: dict[str, jax.Array]) -> Any:
        """Dispatches a step on a batch, and returns its metrics without waiting."""
        self.state, metrics = self.step(self.state, batch, self._teacher)
        return metrics

    def seconds(self, steps: int = 1) -> float:
        """Runs some steps and returns the mean seconds per step."""
        begin = time.perf_counter()
        for _ in range(steps):
            metrics = self.advance(self._images)
        jax.block_until_ready((self.state, metrics))
        return (time.perf_counter() - begin) / steps


class Step(MeshStep):
    """The training step of a configuration, on noise.

    Args:
      config: a resolved configuration.
      mesh: devices, real ones or a topology's.
      batch: batch size, over all devices.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, batch: int):
        teacher = find_teacher(config)
        classes = CLASSES[model_task(config.model.name)]
        model = model_for(config, len(teacher.class_names) if teacher else classes)
        task = task_of(config)(config, [""] * model.num_classes)
        optimizer = make_optimizer(config.optimizer, lambda step: LEARNING_RATE)
        size = task.input_size(config)

        def create() -> TrainState:
            ema = bool(config.ema.decay)
            return create_state(model, optimizer, size, config.seed, ema=ema)

        def noise(examples: int) -> dict[str, np.ndarray]:
            return {
                **task.noise(examples),
                "bad": np.zeros(examples, bool),
                "request": np.zeros(mesh.size, np.int32),
            }

        step = compile_train_step(
            model,
            task,
            optimizer,
            lambda step: LEARNING_RATE,
            config,
            mesh,
            jax.eval_shape(create),
            teacher,
        )
        shapes = variable_shapes(teacher.model, size) if teacher else None
        super().__init__(mesh, batch, model, size, step, create, noise, shapes)
