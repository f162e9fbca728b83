"""A training step on noise, to be compiled for devices or timed on them."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.parallel.mesh import batch_sharding, state_sharding, to_global
from vt_flax.training.checkpoint import abstract_like
from vt_flax.training.optimizer import make_optimizer
from vt_flax.training.run import model_for
from vt_flax.training.state import create_state
from vt_flax.training.step import compile_train_step
from vt_flax.training.tasks import task_of
from vt_flax.training.teacher import find_teacher

# Classes where the configuration leaves them to a dataset, which is not opened here.
CLASSES = 1000


class Step:
    """A training step of a configuration, on images that are noise.

    Args:
      config: a resolved configuration.
      mesh: devices, real ones or a topology's.
      batch: examples in a step, over all devices.

    Attributes:
      model: the network.
      size: height and width of the images that it is trained on.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, batch: int):
        self._mesh, self._batch = mesh, batch
        teacher = find_teacher(config)
        model = model_for(config, len(teacher.class_names) if teacher else CLASSES)
        self.model = model
        self._task = task_of(config)(config, [""] * model.num_classes)
        # The rate is no part of what a step costs.
        optimizer = make_optimizer(config.optimizer, lambda step: 1e-3)
        self.size = size = self._task.input_size(config)
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

    def arguments(self) -> tuple[Any, dict[str, Any], Any]:
        """Returns the shapes of a state, a batch and a teacher's variables, spread."""
        state, teacher = (
            abstract_like(shapes, state_sharding(self._mesh, shapes))
            for shapes in (self._shapes, self._teacher_shapes)
        )
        batch = {}
        # One example tells the shape of all.
        for key, value in self._noise(1).items():
            size = len(value) if key == "request" else self._batch
            batch[key] = jax.ShapeDtypeStruct(
                (size, *value.shape[1:]),
                value.dtype,
                sharding=batch_sharding(self._mesh),
            )
        return state, batch, teacher

    def trace(self) -> Any:
        """Traces the step, to be compiled for the mesh's devices."""
        return self._step.trace(*self.arguments())

    def compile(self) -> Any:
        """Compiles the step for the mesh's devices, which need not be there."""
        return self.trace().lower().compile()

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
        self._images = to_global(self._noise(self._batch), self._mesh)
        self.seconds()

    def seconds(self) -> float:
        """Returns how long a step takes."""
        begin = time.perf_counter()
        self.state, metrics = self._step(self.state, self._images, self._teacher)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - begin

    def _noise(self, batch: int) -> dict[str, np.ndarray]:
        return {
            **self._task.noise(batch),
            "bad": np.zeros(batch, bool),
            "request": np.zeros(self._mesh.size, np.int32),
        }
