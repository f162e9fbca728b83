"""Tasks of networks: inputs, loss and metrics, apart from the architecture.

Both classes have the same methods and attributes:

- `open_source` opens a split of the configured dataset, and raises `UserError` where it
  is missing or not for the task;
- `input_size` is the height and width of the images that are trained on;
- `decoder` decodes a source's examples, and `noise` makes random ones of that shape;
- `train_inputs` augments a training batch inside the step, and returns images (batch,
  H, W, 3), float32, and the targets of `loss`;
- `loss` returns the loss of a batch and metrics from 0 to 1, all scalars;
- `counts` returns sums over an evaluation batch, whose `mask` is False for padding;
- `results` returns the results of a split from its NumPy sums, `examples` included,
  and `summary` the results as one line;
- `metric` is the result that selects the best checkpoint, higher being better,
  `train_metric` the metric of progress lines, and `titles` the names of percentages.
"""

from ml_collections import ConfigDict

from vt_flax.models import model_task
from vt_flax.training.tasks.classification import Classification
from vt_flax.training.tasks.segmentation import Segmentation

Task = Classification | Segmentation


def task_of(config: ConfigDict) -> type[Task]:
    """Returns the task of the configured model."""
    tasks = {"classification": Classification, "segmentation": Segmentation}
    return tasks[model_task(config.model.name)]
