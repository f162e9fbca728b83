"""Tasks of networks: classification and segmentation."""

from ml_collections import ConfigDict

from vt_flax.data.source import Source
from vt_flax.models import model_task
from vt_flax.training.tasks.classification import Classification
from vt_flax.training.tasks.segmentation import Segmentation
from vt_flax.training.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
}

__all__ = ["TASKS", "Task", "make_task", "task_of"]


def task_of(config: ConfigDict) -> type[Task]:
    """Returns the task of the configured model."""
    return TASKS[model_task(config.model.name)]


def make_task(config: ConfigDict, source: Source) -> Task:
    """Returns the task of the configured model on a dataset."""
    return task_of(config)(config, source.class_names, source.mirrored)
