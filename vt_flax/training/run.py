"""What training and evaluation both set up from a configuration."""

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.data.batches import check_config, check_source
from vt_flax.data.source import Source
from vt_flax.errors import UserError, first_names
from vt_flax.models import create_model
from vt_flax.parallel import processes
from vt_flax.parallel.agreement import check_data
from vt_flax.parallel.mesh import check_batch, make_mesh, state_sharding
from vt_flax.training.checkpoint import abstract_like
from vt_flax.training.optimizer import make_optimizer
from vt_flax.training.schedule import duration_steps, interval_steps, make_schedule
from vt_flax.training.state import TrainState, create_state
from vt_flax.training.tasks import Task, make_task, task_of


@dataclasses.dataclass(frozen=True)
class Run:
    """A configured run, before anything is trained.

    Attributes:
      config: the resolved configuration.
      mesh: the devices.
      train_source: the training split.
      eval_source: the evaluation split.
      task: what is trained for.
      model: the network.
      schedule: learning rate by step.
      optimizer: the optimizer.
      total_steps: steps of the whole run.
      every: steps from one to the next, by section: `log`, `eval` and `checkpoint`.
    """

    config: ConfigDict
    mesh: Mesh
    train_source: Source
    eval_source: Source
    task: Task
    model: nn.Module
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    total_steps: int
    every: Mapping[str, int]

    @property
    def _create(self) -> Callable[[], TrainState]:
        config = self.config

        def create() -> TrainState:
            return create_state(
                self.model,
                self.optimizer,
                self.task.input_size(config),
                config.seed,
                ema=bool(config.ema.decay),
            )

        return create

    def abstract_state(self) -> TrainState:
        """Returns the shapes and shardings of the state; nothing is computed."""
        state = jax.eval_shape(self._create)
        return abstract_like(state, state_sharding(self.mesh, state))

    def initial_state(self) -> TrainState:
        """Returns the state at step 0, where it is trained."""
        shardings = state_sharding(self.mesh, jax.eval_shape(self._create))
        return jax.jit(self._create, out_shardings=shardings)()


def model_for(config: ConfigDict, num_classes: int) -> nn.Module:
    """Creates the configured model; classes are the dataset's unless configured."""
    options = config.model.to_dict()
    name = options.pop("name")
    options["num_classes"] = options["num_classes"] or num_classes
    return create_model(name, **options)


def check_step(config: ConfigDict, devices: int) -> None:
    """Checks that batches can be spread, cut, normalised and augmented as configured.

    Args:
      config: a resolved configuration.
      devices: how many a batch is spread over.

    Raises:
      UserError: if they cannot.
    """
    if config.accumulation < 1:
        raise UserError(f"accumulation {config.accumulation}: must be at least 1")
    check_batch(config.batch_size, devices, "batch_size", config.accumulation)
    part = config.batch_size // config.accumulation
    group_size = config.model.bn_group_size
    if group_size > 0 and part % group_size:
        raise UserError(
            f"model.bn_group_size={group_size} does not divide the {part} examples of "
            "a microbatch (batch_size / accumulation)"
        )
    if config.model.dtype == "float16":
        raise UserError(
            "model.dtype float16: small gradients would be lost, for losses are not "
            "scaled: train in bfloat16"
        )
    check_config(config.data)
    task_of(config).check_config(config, part)


def _check_numbers(config: ConfigDict) -> None:
    for key, value in (
        ("ema.decay", config.ema.decay),
        ("loss.label_smoothing", config.loss.label_smoothing),
        ("optimizer.decay", config.optimizer.decay),
        ("optimizer.momentum", config.optimizer.momentum),
    ):
        if not 0 <= value < 1:
            raise UserError(f"{key} {value}: must be at least 0, and under 1")
    for key, value, least in (
        ("checkpoint.keep", config.checkpoint.keep, 1),
        ("checkpoint.keep_best", config.checkpoint.keep_best, 0),
        ("checkpoint.minutes", config.checkpoint.minutes, 0),
        ("parallel.silence_seconds", config.parallel.silence_seconds, 5),
        ("parallel.stall_seconds", config.parallel.stall_seconds, 5),
        ("profile.start", config.profile.start, 1),
        ("profile.steps", config.profile.steps, 0),
        ("eval.batch_size", config.eval.batch_size, 0),
        ("optimizer.clip_norm", config.optimizer.clip_norm, 0),
        ("optimizer.weight_decay", config.optimizer.weight_decay, 0),
    ):
        if value < least:
            raise UserError(f"{key} {value}: must be at least {least}")
    if config.optimizer.epsilon <= 0:
        raise UserError(f"optimizer.epsilon {config.optimizer.epsilon}: must be over 0")


def prepare(config: ConfigDict) -> Run:
    """Opens the data and builds everything that a configuration describes.

    Raises:
      UserError: for whatever in the configuration does not fit together.
    """
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    check_step(config, mesh.size)
    data = config.data
    kind = task_of(config)
    _check_numbers(config)
    # Process 0 first: a dataset that this package makes itself is made by one.
    if jax.process_index():
        processes.gather("data", None)
    processes.report("opening the training split")
    train_source = kind.open_source(config, data.train_split)
    processes.report("opening the evaluation split")
    eval_source = kind.open_source(config, data.eval_split)
    processes.report("building the network")
    if jax.process_index() == 0:
        processes.gather("data", None)
    if processes.several():
        check_data({"train": train_source.identity(), "eval": eval_source.identity()})
    if train_source.class_names != eval_source.class_names:
        names = set(train_source.class_names) ^ set(eval_source.class_names)
        shown = first_names(sorted(map(str, names))) or "in another order"
        raise UserError(
            f"{train_source.name} and {eval_source.name} have different classes "
            f"({shown}): give both the same"
        )
    model = model_for(config, len(train_source.class_names))
    check_source(train_source, model.num_classes)
    examples = len(train_source)
    total = duration_steps(config.duration, examples=examples, batch=config.batch_size)
    if total < 1:
        raise UserError(f"duration {config.duration!r} is less than a step")
    size = {"examples": examples, "batch": config.batch_size, "total": total}
    every = {
        section: interval_steps(f"{section}.every", config[section].every, **size)
        for section in ("log", "eval", "checkpoint")
    }
    schedule = make_schedule(config.schedule, **size)
    optimizer = make_optimizer(config.optimizer, schedule)
    return Run(
        config,
        mesh,
        train_source,
        eval_source,
        make_task(config, train_source),
        model,
        schedule,
        optimizer,
        total,
        every,
    )
