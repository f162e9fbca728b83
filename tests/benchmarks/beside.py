"""A reference that is timed in a process beside this one."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
from ml_collections import ConfigDict
from plain import plain_resnet

from vt_flax.errors import UserError
from vt_flax.training.tasks import task_of

PROGRAM = pathlib.Path(__file__).with_name("torch_step.py")


def check_installed(kind: str) -> None:
    """Checks that what a kind of `Beside` needs is installed.

    Raises:
      UserError: if it is not.
    """
    for name in ("torch", "timm") if kind == "timm" else ("torch",):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed: pip install {name}")


def cores() -> int:
    """Returns on how many cores this process may run: as many threads XLA has."""
    # Not everywhere can a process be kept to some.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Beside:
    """The training step of a plain ResNet in PyTorch, in a process of its own.

    Its libraries, threads and memory are not ours. A context manager, which ends it.

    Args:
      kind: `torch`, compiled where that works, `torch_eager`, or `timm`, compiled too.
      config: a resolved configuration.
      batch: examples in a step.

    Attributes:
      what: network, version and device, once it is started.
      peak: bytes of a GPU that it has taken at once; None on a CPU.

    Raises:
      UserError: if it is not installed, or no plain ResNet stands for the network.
    """

    def __init__(self, kind: str, config: ConfigDict, batch: int):
        check_installed(kind)
        self._kind = kind
        self._request = {
            "kind": kind,
            "plain": dataclasses.asdict(plain_resnet(config)),
            "batch": batch,
            "image_size": task_of(config).input_size(config),
            "dtype": config.model.dtype,
            "mean": list(config.data.mean),
            "std": list(config.data.std),
            "label_smoothing": config.loss.label_smoothing,
            "average": config.ema.decay,
            "optimizer": config.optimizer.to_dict(),
            # Where JAX computes.
            "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
            "threads": cores(),
        }
        self.what, self.peak = "", None

    def __enter__(self) -> "Beside":
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        return self

    def __exit__(self, *_) -> None:
        # It waits for its next line, or computes a step that nobody needs any more.
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def start(self) -> None:
        """Has it build its network and run a first step.

        Raises:
          UserError: with what it says is wrong.
        """
        self.what = self._ask(json.dumps(self._request))["what"]

    def seconds(self, steps: int = 1) -> float:
        """Returns how long a step takes, on the mean of some, one after the other."""
        return self._ask(str(steps))["seconds"]

    def _ask(self, line: str) -> dict[str, Any]:
        try:
            print(line, file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline() or "{}")
        except BrokenPipeError:
            answer = {}
        if not answer:
            status = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().split("\n")[-1]
            raise UserError(f"{self._kind} ended: {last or f'status {status}'}")
        if "error" in answer:
            raise UserError(answer["error"])
        self.peak = answer["peak"]
        return answer
