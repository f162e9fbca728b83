"""Knowledge distillation from a frozen teacher.

The teacher's weights are not in the state or its checkpoints: the step takes them as an
argument of its own.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.errors import UserError, first_few
from vt_flax.parallel import processes
from vt_flax.parallel.mesh import put_whole, state_sharding
from vt_flax.training.config import resolve
from vt_flax.training.fingerprint import host_fingerprint
from vt_flax.training.run import model_for
from vt_flax.training.state import differing_array
from vt_flax.training.tasks import Task, task_of
from vt_flax.training.tasks.classification import Classification
from vt_flax.training.weights import find_checkpoint, read_weights, variable_shapes
from vt_flax.training.workdir import CONFIG_FILE, different_classes, read_run

OPTION = "distillation.teacher"


class Teacher:
    """Network of another run, as the configuration in its workdir describes it.

    `config` is that of the student's run.

    Attributes:
      model: the network.
      folder: folder of its checkpoint.
      class_names: of the dataset that the teacher was trained on.

    Raises:
      UserError: if there is no checkpoint of a classifier, or no configuration with it,
        or it was trained with another normalization.
    """

    def __init__(self, config: ConfigDict):
        self._place = place = config.distillation.teacher
        self.folder = find_checkpoint(OPTION, place)
        try:
            # The folder is WORKDIR/checkpoints/STEP or WORKDIR/best/STEP.
            record = read_run(self.folder.absolute().parent.parent)
            teacher_config = resolve(ConfigDict(record.config))
        except UserError as error:
            raise UserError(f"{OPTION} {place}: {error}") from error
        self._name = teacher_config.model.name
        if task_of(teacher_config) is not Classification:
            raise UserError(
                f"{OPTION} {place}: {self._name} does not classify: name the workdir "
                "of a network that does"
            )
        self.class_names = tuple(record.class_names)
        self.model: nn.Module = model_for(teacher_config, len(self.class_names))
        for key in ("mean", "std"):
            value = teacher_config.data[key]
            if config.data[key] != value:
                raise UserError(
                    f"{OPTION} {place}: was trained with data.{key} {value}; set the "
                    "same here"
                )

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        """Returns float32 logits (batch, classes) of normalized images."""
        return self.model.apply(variables, images, train=False).astype(jnp.float32)

    def load(self, task: Task, mesh: Mesh) -> tuple[Any, str]:
        """Reads the EMA weights, or the raw ones if no EMA was kept.

        Args:
          task: the student's.
          mesh: over which the weights are sharded as a state is.

        Returns:
          The variables, and a description of the weights without their folder.

        Raises:
          UserError: if the teacher has other classes, or in another order; if the
            weights cannot be read, are another network's, or differ between processes.
        """
        if lines := different_classes(self.class_names, task.class_names):
            raise UserError(
                f"{OPTION} {self._place}: its classes are not the dataset's "
                f"({first_few(lines)}): name a network trained on the same classes"
            )
        weights, name = read_weights(OPTION, self.folder)
        shapes = variable_shapes(self.model, task.input_size(task.config))
        if path := differing_array(weights, shapes):
            raise UserError(
                f"{OPTION} {self._place}: {path} is not that of the {self._name} which "
                f"its {CONFIG_FILE} describes"
            )
        checksum = sum(host_fingerprint(weights).values()) % 2**32
        description = (
            f"{self._name}, step {self.folder.name}, {name} weights ({checksum:08x})"
        )
        processes.check_equal(
            "reads another teacher than",
            {OPTION: description},
            "name a folder that all machines share",
        )
        weights = jax.tree.map(lambda x: np.asarray(x, np.float32), weights)
        shardings = state_sharding(mesh, shapes)
        return jax.tree.map(put_whole, weights, shardings), description


def find_teacher(config: ConfigDict) -> Teacher | None:
    """Returns the configured teacher; None without one."""
    return Teacher(config) if config.distillation.teacher else None
