"""A run: everything that training and evaluation set up from a configuration."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.data.source import Source
from vt_flax.errors import UserError, first_names
from vt_flax.models import create_model
from vt_flax.parallel import processes
from vt_flax.parallel.mesh import make_mesh, state_sharding
from vt_flax.training.config_rules import check_step
from vt_flax.training.durations import duration_steps
from vt_flax.training.optimizer import make_optimizer
from vt_flax.training.schedule import make_schedule
from vt_flax.training.state import TrainState, abstract_like, create_state
from vt_flax.training.tasks import Task, task_of


@dataclasses.dataclass(frozen=True)
class Run:
    """A configured run, before anything is trained."""

    config: ConfigDict
    mesh: Mesh
    train_source: Source
    eval_source: Source
    task: Task
    model: nn.Module
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    total_steps: int
    # Interval in steps of `log`, `eval` and `checkpoint`.
    every: Mapping[str, int]

    def is_due(self, section: str, step: int) -> bool:
        """Returns whether an interval of `log`, `eval` or `checkpoint` ends at a step.

        All of them end at the last step.
        """
        return step == self.total_steps or step % self.every[section] == 0

    def _create(self) -> TrainState:
        return create_state(
            self.model,
            self.optimizer,
            self.task.input_size(self.config),
            self.config.seed,
            ema=bool(self.config.ema.decay),
        )

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


def prepare(config: ConfigDict) -> Run:
    """Opens the data and builds everything that a configuration describes.

    Raises:
      UserError: for a configuration that does not suit the data or the devices.
    """
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    check_step(config, mesh.size)
    train_source, eval_source = _open_sources(config)
    model = model_for(config, len(train_source.class_names))
    _check_classes(train_source, eval_source, model.num_classes)
    sizes = {"examples": len(train_source), "batch": config.batch_size}
    total = duration_steps(config.duration, **sizes)
    if total < 1:
        raise UserError(f"config.duration {config.duration!r}: is less than a step")
    schedule = make_schedule(config.schedule, total=total, **sizes)
    return Run(
        config=config,
        mesh=mesh,
        train_source=train_source,
        eval_source=eval_source,
        task=task_of(config)(config, train_source.class_names, train_source.mirrored),
        model=model,
        schedule=schedule,
        optimizer=make_optimizer(config.optimizer, schedule),
        total_steps=total,
        every={
            section: max(1, duration_steps(config[section].every, total=total, **sizes))
            for section in ("log", "eval", "checkpoint")
        },
    )


def _open_sources(config: ConfigDict) -> tuple[Source, Source]:
    """Opens the splits for training and evaluation, which all processes agree on."""
    open_source = task_of(config).open_source
    # Process 0 goes first, because it may have to prepare the dataset.
    if jax.process_index():
        processes.gather("data", None)
    processes.report("opening the training split")
    train_source = open_source(config, config.data.train_split)
    processes.report("opening the evaluation split")
    eval_source = open_source(config, config.data.eval_split)
    processes.report("building the network")
    if jax.process_index() == 0:
        processes.gather("data", None)
    if processes.several():
        processes.check_equal(
            "has other data than",
            {"train": train_source.identity(), "eval": eval_source.identity()},
            "copy it again, or set data.data_dir to a folder that all machines share",
        )
    return train_source, eval_source


def _check_classes(train: Source, evaluation: Source, num_classes: int) -> None:
    """Checks that both splits and the model have the same classes."""
    if train.class_names != evaluation.class_names:
        differing = set(train.class_names) ^ set(evaluation.class_names)
        shown = first_names(sorted(map(str, differing))) or "in another order"
        raise UserError(
            f"{train.name} and {evaluation.name} have different classes ({shown}): "
            "give both the same"
        )
    if len(train.class_names) != num_classes:
        raise UserError(
            f"config.model.num_classes {num_classes}: {train.name} has "
            f"{len(train.class_names)} classes; set it to 0 to take the dataset's"
        )
