"""A training step on noise, to be compiled for devices or timed on them."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.models import model_task
from vt_flax.parallel.mesh import batch_sharding, state_sharding, to_global
from vt_flax.training.checkpoint import abstract_like
from vt_flax.training.optimizer import make_optimizer
from vt_flax.training.run import model_for
from vt_flax.training.state import TrainState, create_state
from vt_flax.training.step import compile_train_step
from vt_flax.training.tasks import task_of
from vt_flax.training.teacher import find_teacher

# Classes where the configuration leaves them to a dataset, which is not opened here: as
# many as ImageNet has, and ADE20K.
CLASSES = {"classification": 1000, "segmentation": 150}


class MeshStep:
    """A jitted training step, whoever wrote it, and what it needs on a mesh.

    Args:
      mesh: devices, real ones or a topology's.
      batch: examples in a step, over all devices.
      step: `step(state, batch, *others) -> state, metrics`, jitted; the state is
        donated.
      create: makes the state at step 0.
      shapes: of that state.
      noise: makes a number of examples, arrays by name.
      aside: what a batch holds beside its examples.
      others: shapes of the step's other arguments, whose values do not matter.

    Attributes:
      state: the newest, once it is started.
    """

    def __init__(
        self,
        mesh: Mesh,
        batch: int,
        step: Callable[..., tuple[Any, Any]],
        create: Callable[[], Any],
        shapes: Any,
        noise: Callable[[int], dict[str, np.ndarray]],
        aside: dict[str, np.ndarray] | None = None,
        others: Sequence[Any] = (),
    ):
        self._mesh, self._batch, self._step = mesh, batch, step
        self._create, self._shapes, self._other_shapes = create, shapes, tuple(others)
        self._noise, self._aside = noise, aside or {}

    def compile(self) -> Any:
        """Compiles the step for the mesh's devices, which need not be there."""
        return self.lower().compile()

    def lower(self) -> Any:
        """Traces the step, and returns what there is to compile."""
        state, *others = (
            abstract_like(shapes, state_sharding(self._mesh, shapes))
            for shapes in (self._shapes, *self._other_shapes)
        )

        def array(value: np.ndarray, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
            sharding = batch_sharding(self._mesh)
            return jax.ShapeDtypeStruct(shape, value.dtype, sharding=sharding)

        # One example tells what all look like: of a pod's there are too many to make.
        batch = {
            name: array(value, (self._batch, *value.shape[1:]))
            for name, value in self._noise(1).items()
        }
        batch |= {
            name: array(value, value.shape) for name, value in self._aside.items()
        }
        return self._step.lower(state, batch, *others)

    def start(self) -> None:
        """Puts a state and a batch on the devices, and runs a first step."""

        def spread(create: Callable[[], Any], shapes: Any) -> Any:
            shardings = state_sharding(self._mesh, shapes)
            return jax.jit(create, out_shardings=shardings)()

        self.state = spread(self._create, self._shapes)
        self._others = [
            spread(lambda shapes=shapes: jax.tree.map(jnp.zeros_like, shapes), shapes)
            for shapes in self._other_shapes
        ]
        self._constant = to_global(self._aside, self._mesh)
        self._examples = to_global(self._noise(self._batch), self._mesh)
        self.seconds()

    def advance(self, examples: dict[str, jax.Array]) -> Any:
        """Runs a step on some examples; returns its metrics, without waiting."""
        batch = examples | self._constant
        self.state, metrics = self._step(self.state, batch, *self._others)
        return metrics

    def seconds(self, steps: int = 1) -> float:
        """Returns how long a step takes, on the mean of some, one after the other."""
        begin = time.perf_counter()
        for _ in range(steps):
            metrics = self.advance(self._examples)
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
        # The rate is no part of what a step costs.
        optimizer = make_optimizer(config.optimizer, lambda step: 1e-3)
        size = task.input_size(config)

        def create() -> TrainState:
            ema = bool(config.ema.decay)
            return create_state(model, optimizer, size, config.seed, ema=ema)

        def noise(examples: int) -> dict[str, np.ndarray]:
            return task.noise(examples) | {"bad": np.zeros(examples, bool)}

        shapes = jax.eval_shape(create)
        step = compile_train_step(
            model, task, optimizer, lambda step: 1e-3, config, mesh, shapes, teacher
        )
        super().__init__(
            mesh,
            batch,
            step,
            create,
            shapes,
            noise,
            aside={"request": np.zeros(mesh.size, np.int32)},
            # Nor are a teacher's weights.
            others=[teacher.shapes(size) if teacher else None],
        )
