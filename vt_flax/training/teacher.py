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
from vt_flax.training.weights import PARTS, find_checkpoint, read_weights
from vt_flax.training.workdir import CONFIG_FILE, different_classes, read_run

OPTION = "distillation.teacher"


class Teacher:
    """Network of another run, as the configuration in its workdir describes it.

    Args:
      config: the whole configuration of the student's run.

    Attributes:
      model: the network.
      folder: folder of its checkpoint.
      class_names: of the dataset that the teacher was trained on.

    Raises:
      UserError: if there is no checkpoint of a classifier, or no configuration with it.
    """

    def __init__(self, config: ConfigDict):
        self._place = place = config.distillation.teacher
        self.folder = find_checkpoint(OPTION, place)
        try:
            # The folder is WORKDIR/checkpoints/STEP or WORKDIR/best/STEP.
            record = read_run(self.folder.absolute().parent.parent)
            own = resolve(ConfigDict(record.config))
        except UserError as error:
            raise UserError(f"{OPTION} {place}: {error}") from error
        if task_of(own) is not Classification:
            raise UserError(
                f"{OPTION} {place}: {own.model.name} does not classify: name the "
                "workdir of a network that does"
            )
        self.class_names = tuple(record.class_names)
        self.model: nn.Module = model_for(own, len(self.class_names))
        self._name = own.model.name
        mean, std = (np.asarray(config.data[key]) for key in ("mean", "std"))
        own_mean, own_std = (np.asarray(own.data[key]) for key in ("mean", "std"))
        self._scale = (std / own_std).astype(np.float32)
        self._shift = ((mean - own_mean) / own_std).astype(np.float32)

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        """Returns the teacher's logits, (batch, classes) float32.

        Args:
          variables: see `load`.
          images: (batch, H, W, 3), normalized for the student.
        """
        if (self._scale != 1).any() or self._shift.any():
            images = images * self._scale + self._shift
        return self.model.apply(variables, images, train=False).astype(jnp.float32)

    def shapes(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """Returns the shapes of the variables, for images of a height and width."""
        images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), images)
        return {part: shapes.get(part, {}) for part in PARTS}

    def load(self, task: Task, mesh: Mesh) -> tuple[Any, str]:
        """Reads the EMA weights, or the raw ones if no EMA was kept.

        Args:
          task: the student's.
          mesh: over which the weights are sharded as a state is.

        Returns:
          The variables, and a description of the weights that does not depend on their
          place.

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
        shapes = self.shapes(task.input_size(task.config))
        path = differing_array(weights, shapes)
        if path:
            raise UserError(
                f"{OPTION} {self._place}: {path} is not that of the {self._name} which "
                f"its {CONFIG_FILE} describes"
            )
        checksum = sum(host_fingerprint(weights).values()) % 2**32
        own = f"{self._name}, step {self.folder.name}, {name} weights ({checksum:08x})"
        for i, other in enumerate(processes.gather("teacher", own)):
            if other != own:
                raise UserError(
                    f"{OPTION} {self._place}: {processes.names([i])} reads {other}, "
                    f"this process {own}: name a folder that all machines share"
                )
        weights = jax.tree.map(lambda x: np.asarray(x, np.float32), weights)
        return jax.tree.map(put_whole, weights, state_sharding(mesh, shapes)), own


def find_teacher(config: ConfigDict) -> Teacher | None:
    """Returns the configured teacher; None without one."""
    return Teacher(config) if config.distillation.teacher else None
