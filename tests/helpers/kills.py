"""Kills a training again and again and compares its result with an undisturbed one's.

python tests/helpers/kills.py --kills 100
python tests/helpers/kills.py --kills 20 --processes 2

Kills by SIGKILL at random moments: while it starts, while it trains, and while a
checkpoint is being written. Prints what it does and ends with status 1 if a parameter,
an average, a state of the optimizer or a metric differs by a bit.
"""

import argparse
import contextlib
import functools
import pathlib
import random
import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any

from pods import assert_same_run, pod

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


class Run:
    """Starts a training, over and over, of whose processes one is killed.

    Args:
      folder: for the workdir and the output.
      changes: of the configuration.
      count: how many processes.
    """

    def __init__(self, folder: pathlib.Path, changes: dict[str, Any], count: int = 1):
        self.folder, self.changes, self.count = folder, changes, count

    @contextlib.contextmanager
    def life(self):
        """Yields what kills it, what waits for its end, and what it has printed."""
        changes = [self.changes] * self.count
        # One that was killed before it came is not to be waited for long.
        extra = ["--start_seconds", "20"]
        with pod(self.folder, changes, extra=extra) as it:

            def kill() -> None:
                victim = random.choice(it)
                victim.kill()
                for other in it:
                    if other is not victim:
                        # JAX aborts where one is lost while it starts.
                        assert other.end(60) in (5, -signal.SIGABRT), other.err

            def end() -> None:
                for process in it:
                    assert process.end(600) == 0, process.err

            yield kill, end, lambda: it[0].out


def compare(
    folder: pathlib.Path,
    changes: dict[str, Any],
    kills: int,
    say: Callable[[str], None],
    *,
    count: int = 1,
    seed: int = 0,
) -> dict[str, int]:
    """Kills a run some times, lets it end, and compares it with one left alone.

    Returns:
      How often it was killed at which of MOMENTS.
    """
    # Longer than all lives together: each loses its last steps.
    changes = LONG | {"duration": f"{20 * kills} steps"} | changes
    whole, parts = (Run(folder / name, changes, count) for name in ("whole", "parts"))
    with whole.life() as (_, end, printed):
        _wait(lambda: "first step after" in printed())
        begin = time.monotonic()
        end()
        seconds = time.monotonic() - begin
    found = _disturb(parts, kills, seed, say, seconds / kills)
    assert_same_run(parts.folder, whole.folder)
    return found


def _disturb(
    run: Run, kills: int, seed: int, say: Callable[[str], None], seconds: float
) -> dict[str, int]:
    """Kills a run, each time within some seconds of training, then lets it end."""
    generator = random.Random(seed)
    found = dict.fromkeys(MOMENTS, 0)
    checkpoints = run.folder / "run" / "checkpoints"
    whole: list[int] = []
    while sum(found.values()) < kills:
        moment = MOMENTS[sum(found.values()) % len(MOMENTS)]
        begin = time.time()
        with run.life() as (kill, _, printed):
            if moment == "starting":
                time.sleep(generator.uniform(0, 3))
            else:
                _wait(lambda: "first step after" in printed())
                if moment == "training":
                    # Else none of a few lives might leave anything to go on from.
                    _wait(lambda before=whole: _saved(checkpoints) != before)
                # On a machine that is faster by now it would come too far.
                limit = time.monotonic() + generator.uniform(0, seconds)
                while time.monotonic() < limit and printed().count("loss") < REPORTS:
                    time.sleep(0.01)
            if moment == "saving":
                _wait(functools.partial(_is_saving, checkpoints, begin))
            kill()
        found[moment] += 1
        whole = _saved(checkpoints)
        say(f"kill {sum(found.values())} of {kills} while {moment}: {whole} are saved")
    with run.life() as (_, end, printed):
        end()
        # The second kill is the first in training.
        assert kills < 2 or "resuming from step" in printed()
    return found


def _saved(checkpoints: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints that are whole."""
    return sorted(int(p.name) for p in checkpoints.glob("*") if p.name.isdigit())


def _is_saving(checkpoints: pathlib.Path, since: float) -> bool:
    """Tells whether Orbax writes to a folder that it renames at the end."""
    with contextlib.suppress(FileNotFoundError):
        return any(p.stat().st_mtime > since for p in checkpoints.glob("*tmp*"))
    return False


def _wait(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit, "it ended before it was killed"
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
        found = compare(
            folder,
            {"data.data_dir": str(folder / "data")},
            args.kills,
            lambda line: print(line, flush=True),
            count=args.processes,
            seed=args.seed,
        )
        print(f"killed {found}: every bit of the result is the undisturbed run's")


if __name__ == "__main__":
    main()
