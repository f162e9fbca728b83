"""How fast a training step is here, beside those of plain ResNets in the same run."""

import contextlib
import dataclasses
import importlib.metadata
import math
from collections.abc import Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vt_flax.analysis.references.beside import Beside, check_installed
from vt_flax.analysis.references.plain import plain_resnet
from vt_flax.errors import UserError, nearest
from vt_flax.measure.loop_rate import loop_times
from vt_flax.measure.turns import Spread, ratios, spread, take_turns
from vt_flax.models import model_task
from vt_flax.paper.macs import count
from vt_flax.plan.step import CLASSES, MeshStep
from vt_flax.plan.steps import OURS, STEPS
from vt_flax.training.run import Run, model_for
from vt_flax.training.tasks import task_of

BESIDE = ("torch", "torch_eager", "timm")
REFERENCES = ("flax_resnet", *BESIDE)
# A turn takes as many steps as fill this: the way to a device and back is no step.
TURN_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Rate:
    """What was measured of one kind of step.

    Attributes:
      step: `ours`, one of REFERENCES, or `loop`.
      what: the network, and who computes it.
      batch: examples in a step.
      seconds: of a step, by round.
      ratio: how many times as long as ours a step takes, by round.
      macs: multiply-adds of the network for an image.
      peak_bytes: most memory that it had on its device, where a reference tells.
    """

    step: str
    what: str
    batch: int
    seconds: Spread
    ratio: Spread
    macs: int
    peak_bytes: int | None = None


def find_references(
    names: Sequence[str], config: ConfigDict
) -> tuple[list[str], list[str]]:
    """Returns those of some references that there are, and why the others are not.

    Raises:
      UserError: for a name that is none of REFERENCES.
    """
    found, notes = [], []
    for name in dict.fromkeys(names):
        if name not in REFERENCES:
            raise UserError(f"--against {name} is not known{nearest(name, REFERENCES)}")
        try:
            plain_resnet(config)
            if name in BESIDE:
                check_installed(name)
            found.append(name)
        except UserError as error:
            notes.append(f"{name} is left out: {error}")
    return found, notes


class Contender:
    """One that takes turns: its step is put where it runs, and warmed up.

    Args:
      name: `ours`, or one of REFERENCES.
      config: a resolved configuration.
      mesh: this machine's devices.
      batch: examples in a step.
      warmup: steps before the first turn, at least one.
      stack: ends what runs beside this process.

    Attributes:
      step: the training step.
      steps: how many a turn takes.
    """

    def __init__(
        self,
        name: str,
        config: ConfigDict,
        mesh: Mesh,
        batch: int,
        warmup: int,
        stack: contextlib.ExitStack,
    ):
        self.name, self._batch = name, batch
        size = task_of(config).input_size(config)
        self.step: MeshStep | Beside
        if name in BESIDE:
            self.step = stack.enter_context(Beside(name, config, batch))
        else:
            self.step = STEPS[name](config, mesh, batch)
        self.step.start()
        for _ in range(warmup):
            seconds = self.step.seconds()
        self.steps = max(1, math.ceil(TURN_SECONDS / seconds))
        if name == OURS:
            self.what = config.model.name
            model = model_for(config, CLASSES[model_task(config.model.name)])
            self._macs = count(model, size).total_macs
            return
        plain = plain_resnet(config)
        self._macs = plain.macs(size)
        self.what = f"{plain.name}, Flax {importlib.metadata.version('flax')}"
        if isinstance(self.step, Beside):
            self.what = self.step.what

    def turn(self) -> float:
        """Returns the seconds of a step."""
        return self.step.seconds(self.steps)

    def rate(self, times: Sequence[float], ours: Sequence[float]) -> Rate:
        """Returns what its times come to, beside ours of the same rounds."""
        peak = self.step.peak if isinstance(self.step, Beside) else None
        ratio = ratios(ours, times)
        return Rate(
            self.name, self.what, self._batch, spread(times), ratio, self._macs, peak
        )


def measure(
    config: ConfigDict,
    mesh: Mesh,
    batch: int,
    *,
    references: Sequence[str],
    rounds: int,
    warmup: int,
    run: Run | None = None,
) -> tuple[list[Rate], list[str]]:
    """Measures our step, references in turns with it, and after them the whole loop.

    Args:
      config: a resolved configuration.
      mesh: this machine's devices.
      batch: examples in a step, which the devices divide.
      references: names of REFERENCES.
      rounds: turns of each.
      warmup: steps of each before them.
      run: whose examples the loop takes; None to leave it out.

    Returns:
      What was measured, and why something was not. The loop has no turns, since its
      input works ahead: its ratio is to the median of our steps.

    Raises:
      UserError: if the network has no use for such a batch.
    """
    contenders: list[Contender] = []
    notes = []
    with contextlib.ExitStack() as stack:
        for name in (OURS, *references):
            try:
                contenders.append(Contender(name, config, mesh, batch, warmup, stack))
            except (UserError, jax.errors.JaxRuntimeError) as error:
                reason = str(error)
                if "RESOURCE_EXHAUSTED" in reason:
                    reason = "it does not fit into the device's memory"
                elif name == OURS or not isinstance(error, UserError):
                    raise
                notes.append(f"{name} at batch {batch} is left out: {reason}")
                if name == OURS:
                    return [], notes
        times = take_turns([contender.turn for contender in contenders], rounds)
        rates = [
            contender.rate(found, times[0])
            for contender, found in zip(contenders, times, strict=True)
        ]
    if run is not None:
        ours = contenders[0]
        found = loop_times(run, ours.step, rounds, ours.steps)
        rates.append(
            dataclasses.replace(
                rates[0],
                step="loop",
                what=f"{ours.what} on {run.train_source.name}",
                seconds=spread(found),
                ratio=ratios([rates[0].seconds.median] * rounds, found),
            )
        )
    return rates, notes
