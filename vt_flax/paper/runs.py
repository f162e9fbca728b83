"""What the user's own runs have come to, read from their workdirs."""

import dataclasses
import pathlib
import statistics
from typing import Any

from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.paper.macs import count
from vt_flax.training.config import resolve
from vt_flax.training.run import model_for
from vt_flax.training.tasks import task_of
from vt_flax.training.tasks.classification import Classification
from vt_flax.training.workdir import read_metrics, read_run


@dataclasses.dataclass(frozen=True)
class Result:
    """A classifier in the making, or made.

    Attributes:
      workdir: its folder.
      model: its name.
      dataset: what it is trained on.
      image_size: height and width that it is trained on, and counted at.
      macs: multiply-adds of one image.
      params: parameters.
      step: of its newest evaluation; None before the first.
      top1: in percent, of the `raw` weights and of their `ema`, if kept.
      images_per_second: median over the run; None before the first report.
    """

    workdir: pathlib.Path
    model: str
    dataset: str
    image_size: tuple[int, int]
    macs: int
    params: int
    step: int | None
    top1: dict[str, float]
    images_per_second: float | None

    @property
    def best_known(self) -> float:
        """Top-1 of the averages, or of the raw weights if none are kept."""
        return self.top1.get("ema", self.top1["raw"])

    @property
    def on_imagenet(self) -> bool:
        """Whether it is trained on what the published figures are of."""
        return self.dataset.startswith("imagenet2012")


def read_result(workdir: pathlib.Path) -> Result:
    """Returns what a run has come to; its dataset is not needed.

    Raises:
      UserError: if there is no run, or one that does not classify.
    """
    record = read_run(workdir)
    config = resolve(ConfigDict(record.config))
    if task_of(config) is not Classification:
        raise UserError(
            f"{workdir}: {config.model.name} segments, and has no top-1: name runs of "
            "classifiers"
        )
    size = Classification.input_size(config)
    counts = count(model_for(config, len(record.class_names)), size)
    records = read_metrics(workdir)
    evaluations = [record for record in records if record["kind"] == "eval"]
    newest: dict[str, Any] = evaluations[-1] if evaluations else {}
    rates = [r["images_per_second"] for r in records if "images_per_second" in r]
    return Result(
        workdir=workdir,
        model=config.model.name,
        dataset=config.data.name,
        image_size=size,
        macs=counts.total_macs,
        params=counts.total_params,
        step=newest.get("step"),
        top1={
            name: newest[f"{name}_top1"]
            for name in ("raw", "ema")
            if f"{name}_top1" in newest
        },
        images_per_second=statistics.median(rates) if rates else None,
    )


def evaluated_result(workdir: pathlib.Path) -> Result:
    """Returns what a run has come to, if it has been evaluated.

    Raises:
      UserError: as `read_result`; and if it has no evaluation on record.
    """
    result = read_result(workdir)
    if not result.top1:
        raise UserError(
            f"{workdir} has no evaluation on record yet: train on until its first"
        )
    return result


def result_row(result: Result) -> dict[str, Any]:
    """Returns a result as a record."""
    height, width = result.image_size
    rate = result.images_per_second
    return {
        "run": str(result.workdir),
        "model": result.model,
        "dataset": result.dataset,
        "size": f"{height}x{width}",
        "step": result.step,
        "raw_top1": _rounded(result.top1.get("raw"), 2),
        "ema_top1": _rounded(result.top1.get("ema"), 2),
        "mmacs": round(result.macs / 1e6, 2),
        "mparams": round(result.params / 1e6, 3),
        "images_per_second": _rounded(rate, 1),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
