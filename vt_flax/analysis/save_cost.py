"""How long a save keeps the training loop from its next step."""

import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax

from vt_flax.paths import writing
from vt_flax.plan.step import Step
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.run import Run


def rows(run: Run, folder: str, saves: int) -> list[dict[str, Any]]:
    """Times saves between steps, as the loop makes them.

    Args:
      run: see `run.prepare`; of its configuration the batch, the model and the interval
        of the checkpoints count.
      folder: on the disk to write to; removed is only what was written.
      saves: how many to time, after a first one that compiles.
    """
    config = run.config
    step = Step(config, run.mesh, config.batch_size)
    step.start()
    seconds = statistics.median(step.seconds() for _ in range(5))
    blocked, written = [], []
    with writing(f"--folder {folder}"):
        scratch = tempfile.TemporaryDirectory(dir=folder)
    with scratch as name:
        checkpoints = Checkpoints(pathlib.Path(name), keep=2)
        for number in range(saves + 1):
            step.seconds()
            begin = time.perf_counter()
            checkpoints.save(number, step.state)
            blocked.append(time.perf_counter() - begin)
            checkpoints.wait()
            written.append(time.perf_counter() - begin)
        checkpoints.close()
    size = sum(x.nbytes for x in jax.tree.leaves(step.state))
    interval = run.every["checkpoint"]
    block = statistics.median(blocked[1:])
    return [
        {
            "state MB": round(size / 1e6, 1),
            "arrays": len(jax.tree.leaves(step.state)),
            "step s": round(seconds, 4),
            "interval steps": interval,
            "blocked s": round(block, 4),
            "written after s": round(statistics.median(written[1:]), 3),
            "share": round(block / (interval * seconds), 5),
        }
    ]
