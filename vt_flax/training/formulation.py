"""Choice of the network's formulation at the start of a run."""

import dataclasses
import json
import pathlib
from typing import Any

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
      record: content of FILE still to be written; empty for none.
    """

    model: nn.Module
    line: str = ""
    record: dict[str, Any] = dataclasses.field(default_factory=dict)

    def write(self, workdir: pathlib.Path) -> None:
        """Records an automatic choice in the workdir, for a resumed run."""
        if self.record:
            write_whole(workdir / FILE, json.dumps(self.record, indent=2) + "\n")


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

    def choice_of(record: dict[str, Any], details: str, new: bool) -> Choice:
        name = record["formulation"]
        line = f"formulation: {name} (auto on {kind}{details})"
        return Choice(make(name), line, record if new else {})

    if configured == "auto":
        # All take what process 0 has read: a file system may show others less.
        recorded = processes.broadcast("recorded formulation", _read(workdir, kind))
        if recorded:
            return choice_of(recorded, f": kept from {FILE}", new=False)
        if on_cpu:
            record = _record(model.computed_by(), kind, {})
            return choice_of(record, ": fastest by BENCHMARKS.md", new=True)
        names = list(fused.FORMULATIONS)
        measured = try_formulations(make, size, device, examples, names[1:])
        trials = {}
        for name in names:
            # A broadcast for each, since its wait has a timeout.
            processes.report(f"timing formulation {name}")
            first = jax.process_index() == 0
            trial = dataclasses.asdict(next(measured)) if first else None
            trials[name] = Trial(**processes.broadcast(f"formulation {name}", trial))
        record = _record(fastest(trials), kind, trials)
        details = "; " + ", ".join(_describe(*item) for item in trials.items())
        return choice_of(record, details, new=True)

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


def _describe(name: str, trial: Trial) -> str:
    if trial.problem:
        return f"{name} left out: {trial.problem}"
    if trial.milliseconds is None:
        return f"{name} the same program"
    return f"{name} {trial.milliseconds:.1f} ms"


def _record(choice: str, kind: str, trials: dict[str, Trial]) -> dict[str, Any]:
    times = {name: trial.milliseconds for name, trial in trials.items()}
    return {
        "formulation": choice,
        "device": kind,
        "milliseconds": {name: round(t, 3) for name, t in times.items() if t},
        "left_out": {name: t.problem for name, t in trials.items() if t.problem},
    }


def _read(workdir: pathlib.Path, kind: str) -> dict[str, Any] | None:
    """Returns the record of a choice on devices of a kind; None if there is none."""
    try:
        record = json.loads((workdir / FILE).read_text())
        if record["device"] == kind and record["formulation"] in fused.FORMULATIONS:
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
