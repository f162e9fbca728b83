"""Kills a training again and again and compares its result with an undisturbed run.

python tests/helpers/kills.py --kills 100
python tests/helpers/kills.py --kills 20 --processes 2

Kills by SIGKILL at random moments: while it starts, while it trains, and while a
checkpoint is being written. Ends with status 1 if a parameter, its EMA, a state of the
optimizer or a metric differs by a bit.
"""

import argparse
import contextlib
import pathlib
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from pods import Process, assert_same_run, pod

# A network that starts fast. Reports straddle checkpoints.
LONG = {
    "model.name": "resnet18",
    "model.stage_sizes": [1, 1, 1, 1],
    "model.width": 8,
    "data.name": "digits",
    "data.eval_split": "test[:45]",
    "data.image_size": 8,
    "data.workers": 1,
    "batch_size": 8,
    "checkpoint.every": "10 steps",
    "eval.every": "60 steps",
    "log.every": "7 steps",
    "log.tensorboard": False,
    "parallel.heartbeat_timeout": 10.0,
}
MOMENTS = ("starting", "training", "saving")
# In a life at most, of 7 steps each.
REPORTS = 3


@contextlib.contextmanager
def start(
    folder: pathlib.Path, changes: dict[str, Any], count: int
) -> Iterator[list[Process]]:
    """Starts the processes of a training; its workdir is `run` in the folder."""
    # The others do not wait long for one that was killed before it registered.
    extra = ["--start_seconds", "20"]
    with pod(folder, [changes] * count, extra=extra) as processes:
        yield processes


def finish(processes: list[Process]) -> None:
    """Waits until all processes have ended without an error."""
    for process in processes:
        assert process.end(600) == 0, process.err


def kill_one(processes: list[Process], generator: random.Random) -> None:
    """Kills one of the processes and waits for the others to end."""
    victim = generator.choice(processes)
    victim.kill()
    for other in processes:
        if other is not victim:
            # JAX aborts where a process is lost while it starts.
            assert other.end(60) in (5, -signal.SIGABRT), other.err


def compare(
    folder: pathlib.Path, data_dir: str, kills: int, count: int = 1, seed: int = 0
) -> None:
    """Checks that a run that is killed and restarted has the undisturbed one's result.

    Args:
      folder: for the workdirs and the output.
      data_dir: folder of the TFDS datasets.
      kills: number of kills, at each of MOMENTS in turn.
      count: number of processes.
      seed: seed of the moments.
    """
    # Longer than all lives together: each loses its last steps.
    changes = LONG | {"duration": f"{20 * kills} steps", "data.data_dir": data_dir}
    whole, disturbed = folder / "whole", folder / "disturbed"
    with start(whole, changes, count) as processes:
        processes[0].wait_for("first step after")
        begin = time.monotonic()
        finish(processes)
        seconds = (time.monotonic() - begin) / kills
    generator = random.Random(seed)
    checkpoints = disturbed / "run" / "checkpoints"
    for i in range(kills):
        moment = MOMENTS[i % len(MOMENTS)]
        before, begin = _saved(checkpoints), time.time()
        with start(disturbed, changes, count) as processes:
            if moment == "starting":
                time.sleep(generator.uniform(0, 3))
            else:
                processes[0].wait_for("first step after")
                if moment == "training":
                    # Otherwise few lives might leave no checkpoint to resume from.
                    _wait(lambda before=before: _saved(checkpoints) != before)
                # A machine that is faster by now would come too far.
                limit = time.monotonic() + generator.uniform(0, seconds)
                while time.monotonic() < limit:
                    if processes[0].out.count("loss") >= REPORTS:
                        break
                    time.sleep(0.01)
            if moment == "saving":
                _wait(lambda begin=begin: _is_saving(checkpoints, begin))
            kill_one(processes, generator)
        saved = _saved(checkpoints)
        print(f"kill {i + 1} of {kills} while {moment}: saved {saved}", flush=True)
    with start(disturbed, changes, count) as processes:
        finish(processes)
        # The second kill is the first in training.
        assert kills < 2 or "resuming from step" in processes[0].out
    assert_same_run(disturbed, whole)


def _saved(checkpoints: pathlib.Path) -> list[int]:
    """Returns the steps of the complete checkpoints."""
    return sorted(int(p.name) for p in checkpoints.glob("*") if p.name.isdigit())


def _is_saving(checkpoints: pathlib.Path, since: float) -> bool:
    """Returns whether Orbax writes to a folder that it renames at the end."""
    with contextlib.suppress(FileNotFoundError):
        return any(p.stat().st_mtime > since for p in checkpoints.glob("*tmp*"))
    return False


def _wait(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit, "the run ended before it was killed"
        time.sleep(0.001)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        compare(folder, str(folder / "data"), args.kills, args.processes, args.seed)
        print("every bit of the result is the undisturbed run's")


if __name__ == "__main__":
    main()
