"""Measures how long saving a checkpoint blocks the training loop.

python tests/benchmarks/save_cost.py --config configs/quickstart.py
"""

import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
from command import make_parser

from vt_flax.cli import startup, tables
from vt_flax.cli.benchmark import check_positive
from vt_flax.parallel import devices
from vt_flax.paths import writing
from vt_flax.plan.step import Step
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.config import load_config
from vt_flax.training.run import Run, prepare


def measure(run: Run, folder: str, saves: int) -> dict[str, Any]:
    """Times saves between steps, as the training loop makes them.

    Args:
      run: see `run.prepare`.
      folder: on the disk to write to; only what was written is removed.
      saves: number of saves to time, after a first one that compiles.
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
    arrays = jax.tree.leaves(step.state)
    interval = run.every["checkpoint"]
    block = statistics.median(blocked[1:])
    return {
        "state MB": round(sum(x.nbytes for x in arrays) / 1e6, 1),
        "arrays": len(arrays),
        "step s": round(seconds, 4),
        "interval steps": interval,
        "blocked s": round(block, 4),
        "written after s": round(statistics.median(written[1:]), 3),
        "share": round(block / (interval * seconds), 5),
    }


def main(argv):
    parser = make_parser(__doc__)
    parser.add_argument("--saves", type=int, default=10, help="number of saves (10)")
    parser.add_argument("--folder", default=".", help="on the disk to write to (.)")
    args, overrides = parser.parse_known_args(argv)
    check_positive(args, "saves")
    config = load_config(args.config, overrides)
    devices.start_devices()
    row = measure(prepare(config), args.folder, args.saves)
    tables.print_rows([row], args.format, "What a checkpoint keeps the loop waiting")


if __name__ == "__main__":
    startup.run(main)
