"""Results of the user's own runs, read from their workdirs, beside the paper's."""

import dataclasses
import pathlib
import re
import statistics
from typing import Any

from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.paper.counts import Table
from vt_flax.paper.macs import count
from vt_flax.paper.published import PUBLISHED, Figures
from vt_flax.training.config import resolve
from vt_flax.training.run import model_for
from vt_flax.training.tasks import task_of
from vt_flax.training.tasks.classification import Classification
from vt_flax.training.workdir import CONFIG_FILE, read_metrics, read_run

# Name of the workdir of an ablation: ROW-DEPTH.
FOLDER = re.compile(r"(\w+)-(18|34)")


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a classifier's run.

    Attributes:
      workdir: its folder.
      model: name of the model.
      dataset: name of the dataset.
      image_size: height and width of the training images, at which MACs are counted.
      macs: multiply-adds of one image.
      params: number of parameters.
      step: step of the newest evaluation; None before the first.
      top1: top-1 in percent of the `raw` weights and of their `ema`, if kept.
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
    def shown_top1(self) -> float:
        """Top-1 of the EMA, or of the raw weights without one."""
        return self.top1.get("ema", self.top1["raw"])


def read_result(workdir: pathlib.Path) -> Result:
    """Returns the result of a run; its dataset is not needed.

    Raises:
      UserError: if there is no run, or it is not of a classifier.
    """
    run = read_run(workdir)
    config = resolve(ConfigDict(run.config))
    if task_of(config) is not Classification:
        raise UserError(
            f"{workdir}: {config.model.name} segments, and has no top-1: name runs of "
            "classifiers"
        )
    size = Classification.input_size(config)
    counts = count(model_for(config, len(run.class_names)), size)
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
    """Returns the result of a run that has been evaluated.

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

    def rounded(value: float | None, digits: int) -> float | None:
        return None if value is None else round(value, digits)

    height, width = result.image_size
    return {
        "run": str(result.workdir),
        "model": result.model,
        "dataset": result.dataset,
        "size": f"{height}x{width}",
        "step": result.step,
        "raw_top1": rounded(result.top1.get("raw"), 2),
        "ema_top1": rounded(result.top1.get("ema"), 2),
        "mmacs": round(result.macs / 1e6, 2),
        "mparams": round(result.params / 1e6, 3),
        "images_per_second": rounded(result.images_per_second, 1),
    }


def ablation_rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns a record for each run of `launch/ablation.sh` that has begun.

    Args:
      folder: folder of the runs' workdirs, ROW-DEPTH each.

    Returns:
      Records as of `result_row`, in the order of the paper's tables, by depth. The
      paper's figures are `printed_top1`, `printed_gmacs` and `printed_mparams`, None
      where it prints none.

    Raises:
      UserError: if there is no such run, or one that cannot be read.
    """
    published = {
        (row.ablation, row.model[-2:]): row for row in PUBLISHED if row.ablation
    }
    order = list(published)
    runs = []
    for file in folder.glob(f"*/{CONFIG_FILE}"):
        if match := FOLDER.fullmatch(file.parent.name):
            name, depth = match.groups()
            key = (name, depth)
            place = order.index(key) if key in published else len(order)
            runs.append((depth, place, name, file.parent))
    if not runs:
        raise UserError(
            f"--ablation {folder}: no run is there; name the folder in which "
            "launch/ablation.sh keeps them, as ROW-DEPTH"
        )
    records = []
    for depth, _, name, workdir in sorted(runs):
        row = published.get((name, depth))
        figures = row.printed if row else Figures()
        records.append(
            {
                "row": name,
                "depth": int(depth),
                "printed_top1": figures.accuracy,
                "printed_gmacs": figures.gmacs,
                "printed_mparams": figures.mparams,
                **result_row(read_result(workdir)),
            }
        )
    return records


def ablation_table(records: list[dict[str, Any]]) -> Table:
    """Returns the table of the records of `ablation_rows`."""
    shown = [
        {
            "row": f"{r['row']}, {r['depth']}",
            "paper's top-1 %": r["printed_top1"],
            "raw": r["raw_top1"],
            "EMA": r["ema_top1"],
            "at step": r["step"],
            "paper's G MACs": r["printed_gmacs"],
            "G MACs": f"{r['mmacs'] / 1e3:.3f}",
            "paper's M params": r["printed_mparams"],
            "M params": r["mparams"],
            "images/s": r["images_per_second"],
        }
        for r in records
    ]
    settings = sorted({f"{r['dataset']} at {r['size']}" for r in records})
    note = (
        "The paper's are of ImageNet at 224x224 after 90 epochs; the others of "
        f"{', '.join(settings)}, by the newest evaluation of each run."
    )
    return Table(shown, "Ablations, the paper's and these", [note])
