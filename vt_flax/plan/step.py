"""A training step on noise, to be compiled for devices or timed on them."""

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

# Classes where the configuration leaves them to a dataset, which is not opened here: as
# many as ImageNet has, and ADE20K.
CLASSES = {"classification": 1000, "segmentation": 150}


class MeshStep:
    """A jitted training step, whoever wrote it, with what it needs on a mesh.

    Args:
      mesh: devices, real ones or a topology's.
      batch: examples in a step, over all devices.
      model: the network.
      size: height and width of the images that it is trained on.
      step: `step(state, batch, teacher) -> state, metrics`, jitted; the state is
        donated.
      create: makes the state at step 0.
      shapes: of that state.
      noise: makes a batch of a number of examples; `request`, if it is there, has an
        element for each device.
      teacher: shapes of a teacher's variables; None without one.

    Attributes:
      mesh: as given.
      state: the newest, once it is started.
    """

    def __init__(
        self,
        mesh: Mesh,
        batch: int,
        model: nn.Module,
        size: tuple[int, int],
        step: Callable[..., tuple[TrainState, Any]],
        create: Callable[[], TrainState],
        shapes: TrainState,
        noise: Callable[[int], dict[str, np.ndarray]],
        teacher: Any = None,
    ):
        self.mesh, self._batch, self._step = mesh, batch, step
        self.model, self.size = model, size
        self._create, self._shapes = create, shapes
        self._noise, self._teacher_shapes = noise, teacher

    def arguments(self) -> tuple[TrainState, dict[str, Any], Any]:
        """Returns the shapes of a state, a batch and a teacher's variables, spread."""
        state, teacher = (
            abstract_like(shapes, state_sharding(self.mesh, shapes))
            for shapes in (self._shapes, self._teacher_shapes)
        )
        batch = {}
        # One example tells the shape of all: of a pod's there are too many to make.
        for key, value in self._noise(1).items():
            size = len(value) if key == "request" else self._batch
            batch[key] = jax.ShapeDtypeStruct(
                (size, *value.shape[1:]),
                value.dtype,
                sharding=batch_sharding(self.mesh),
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
            shardings = state_sharding(self.mesh, shapes)
            return jax.jit(create, out_shardings=shardings)()

        self.state = spread(self._create, self._shapes)
        # A teacher's weights are no part of what a step costs.
        self._teacher = spread(
            lambda: jax.tree.map(jnp.zeros_like, self._teacher_shapes),
            self._teacher_shapes,
        )
        self._images = to_global(self._noise(self._batch), self.mesh)
        self.seconds()

    def advance(self, batch: dict[str, jax.Array]) -> Any:
        """Runs a step on a batch, and returns its metrics without waiting for them."""
        self.state, metrics = self._step(self.state, batch, self._teacher)
        return metrics

    def seconds(self, steps: int = 1) -> float:
        """Returns how long a step takes, on the mean of some, one after the other."""
        begin = time.perf_counter()
        for _ in range(steps):
            metrics = self.advance(self._images)
        jax.block_until_ready((self.state, metrics))
        return (time.perf_counter() - begin) / steps


class Step(MeshStep):
    """A training step of a configuration, on images that are noise.

    Args:
      config: a resolved configuration.
      mesh: devices, real ones or a topology's.
      batch: examples in a step, over all devices.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, batch: int):
        teacher = find_teacher(config)
        classes = CLASSES[model_task(config.model.name)]
        model = model_for(config, len(teacher.class_names) if teacher else classes)
        task = task_of(config)(config, [""] * model.num_classes)
        # The rate is no part of what a step costs either.
        optimizer = make_optimizer(config.optimizer, lambda step: 1e-3)
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

        shapes = jax.eval_shape(create)
        step = compile_train_step(
            model, task, optimizer, lambda step: 1e-3, config, mesh, shapes, teacher
        )
        teacher_shapes = teacher.shapes(size) if teacher else None
        super().__init__(
            mesh, batch, model, size, step, create, shapes, noise, teacher_shapes
        )
