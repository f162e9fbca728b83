"""Choice of the network's formulation at the start of a run."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax
from jax.sharding import Mesh

from vt_flax import fused
from vt_flax.errors import UserError
from vt_flax.fused.selection import Trial, fastest, try_formulations
from vt_flax.parallel import processes
from vt_flax.paths import write_whole

FILE = "formulation.json"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The network in the formulation that is trained.

    Attributes:
      model: the network.
      line: progress line about an automatic choice; empty for none.
      device: kind of the devices of an automatic choice; empty for none.
    """

    model: nn.Module
    line: str = ""
    device: str = ""

    def write(self, workdir: pathlib.Path) -> None:
        """Records an automatic choice in the workdir, for a resumed run."""
        if self.device:
            record = {"formulation": self.model.formulation, "device": self.device}
            write_whole(workdir / FILE, json.dumps(record, indent=2) + "\n")


def choose_formulation(
    model: nn.Module,
    size: tuple[int, int],
    mesh: Mesh,
    examples: int,
    workdir: pathlib.Path,
) -> Choice:
    """Chooses the formulation that a run trains.

    For `auto`, a resumed run keeps its choice on devices of the same kind. Otherwise
    process 0 times all formulations on its first device, and all processes take its
    choice; on CPUs it is the default, and nothing is timed. On accelerators `folded`
    and `fused`, where configured, are compared with `printed` by each process.

    Args:
      model: the configured network; one without formulations is left as it is.
      size: height and width of its input in pixels.
      mesh: the devices.
      examples: number of examples that a device computes at a time.
      workdir: folder of the run, which need not exist.

    Raises:
      UserError: if the configured formulation does not run, or computes something else.
    """
    configured = getattr(model, "formulation", "printed")
    device = min(mesh.local_devices, key=lambda device: device.id)
    kind, on_cpu = device.device_kind, device.platform == "cpu"

    def make(formulation: str) -> nn.Module:
        return model.clone(formulation=formulation)

    if configured == "auto":
        # All take what process 0 has read: a file system may show others less.
        name = processes.broadcast("recorded formulation", _recorded(workdir, kind))
        if name:
            reason = f": kept from {FILE}"
        elif on_cpu:
            name, reason = model.computed_by(), ": fastest by BENCHMARKS.md"
        else:
            trials = _try_all(make, size, device, examples)
            name = fastest(trials)
            described = (_describe(*item) for item in trials.items())
            reason = f"; {', '.join(described)}"
        line = f"formulation: {name} (auto on {kind}{reason})"
        return Choice(make(name), line, kind)

    if configured != "printed" and not on_cpu:
        processes.report(f"comparing formulation {configured} with printed")
        *_, trial = try_formulations(
            make, size, device, examples, [configured], timed=False
        )
        if trial.problem:
            raise UserError(
                f"model.formulation={configured} on {kind}: {trial.problem}: set "
                "--config.model.formulation=printed, and report it"
            )
    return Choice(model)


def _try_all(
    make: Callable[[str], nn.Module],
    size: tuple[int, int],
    device: jax.Device,
    examples: int,
) -> dict[str, Trial]:
    """Returns process 0's trial of each formulation, on all processes."""
    names = list(fused.FORMULATIONS)
    measured = try_formulations(make, size, device, examples, names[1:])
    trials = {}
    for name in names:
        # A broadcast for each, since its wait has a timeout.
        processes.report(f"timing formulation {name}")
        first = jax.process_index() == 0
        trial = dataclasses.asdict(next(measured)) if first else None
        trials[name] = Trial(**processes.broadcast(f"formulation {name}", trial))
    return trials


def _describe(name: str, trial: Trial) -> str:
    if trial.problem:
        return f"{name} left out: {trial.problem}"
    if trial.milliseconds is None:
        return f"{name} the same program"
    return f"{name} {trial.milliseconds:.1f} ms"


def _recorded(workdir: pathlib.Path, kind: str) -> str:
    """Returns the recorded choice on devices of a kind; empty if there is none."""
    try:
        record = json.loads((workdir / FILE).read_text())
    except (OSError, ValueError):
        return ""
    return record["formulation"] if record["device"] == kind else ""
