"""Workdir of a run: lock, identity in config.json, and metrics."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from vt_flax.data.source import Source
from vt_flax.errors import UserError, differences, first_few
from vt_flax.locks import Held, lock
from vt_flax.paths import write_whole, writing
from vt_flax.version import __version__

# Of config.json and checkpoints. Increase it where older ones cannot be read.
FORMAT = 5
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = ".lock"

# Keys that fix the arrays of a checkpoint, or the order of the examples.
FIXED_KEYS = (
    "model.",
    "optimizer.name:",
    "seed:",
    "batch_size:",
    "data.name:",
    "data.train_split:",
    "segmentation.label_map:",
    "segmentation.mask_feature:",
)

Results = dict[str, dict[str, float | None]]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Identity of a run, as config.json records it.

    Attributes:
      config: the resolved configuration, as nested dicts.
      class_names: of the dataset; empty if unknown.
      mirrored: see `Source`.
      teacher: description of the teacher's weights; empty without a teacher.
      data: number and digest of the training examples; None if unknown.
    """

    config: dict[str, Any]
    class_names: Sequence[str] = ()
    mirrored: Sequence[int] = ()
    teacher: str = ""
    data: dict[str, Any] | None = None

    @classmethod
    def of(cls, config: ConfigDict, source: Source, teacher: str = "") -> "RunRecord":
        """Returns the record of a run that trains on a source."""
        identity = json.dumps(source.identity(), sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()
        return cls(
            config.to_dict(),
            list(source.class_names),
            list(source.mirrored),
            teacher,
            {"examples": len(source), "identity": digest},
        )

    def write(self, workdir: pathlib.Path) -> None:
        """Writes the record to a workdir."""
        fields = dataclasses.asdict(self)
        content = {"format": FORMAT, "vt_flax": __version__, **fields}
        write_whole(workdir / CONFIG_FILE, json.dumps(content, indent=2) + "\n")


def read_run(workdir: pathlib.Path) -> RunRecord:
    """Returns the record of the run in a workdir.

    Raises:
      UserError: if there is none, or none that this version reads.
    """
    file = workdir / CONFIG_FILE
    try:
        content = json.loads(file.read_text())
        form = content.pop("format")
        content.pop("vt_flax")
        if form != FORMAT:
            raise UserError(
                f"{file} has format {form}; this version reads {FORMAT}: choose "
                "another workdir, or the version of vt_flax that wrote this one"
            )
        return RunRecord(**content)
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no run ({CONFIG_FILE} is missing): name the folder that "
            "was given to train as --workdir"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error})"
        ) from error


def check_resumable(workdir: pathlib.Path, record: RunRecord) -> list[str]:
    """Checks that a workdir is new, or holds the run that a record describes.

    Returns:
      A line for each difference that a resumed run may have; empty for a new run.

    Raises:
      UserError: if the checkpoints would not fit the model or the optimizer, or the
        examples, their order or their classes differ.
    """
    with writing(f"--workdir {workdir}"):
        if not (workdir / CONFIG_FILE).exists():
            checkpoints = workdir / "checkpoints"
            if checkpoints.is_dir() and any(checkpoints.iterdir()):
                raise UserError(
                    f"{workdir} has checkpoints but no {CONFIG_FILE}: choose another "
                    "workdir"
                )
            return []
    saved = read_run(workdir)
    lines = differences(saved.config, record.config)
    clashes = [
        line
        for line in lines
        # All formulations have the same parameters.
        if line.startswith(FIXED_KEYS) and not line.startswith("model.formulation:")
    ]
    # Switched on or off, these change what a state holds.
    for section, key in (("ema", "decay"), ("optimizer", "momentum")):
        if bool(saved.config[section][key]) != bool(record.config[section][key]):
            clashes += [line for line in lines if line.startswith(f"{section}.{key}:")]
    if record.class_names:
        clashes += different_classes(saved.class_names, record.class_names)
    if saved.data and record.data and saved.data != record.data:
        old, new = saved.data["examples"], record.data["examples"]
        change = f"{old:,} -> {new:,}" if old != new else "others, or changed"
        clashes.append(f"examples to train on: {change}")
    if clashes:
        raise UserError(
            f"{workdir} holds another run ({first_few(clashes)}): choose another "
            "workdir"
        )
    # The teacher's workdir may have newer weights by now.
    if record.teacher and saved.teacher and record.teacher != saved.teacher:
        lines.append(f"the teacher: {saved.teacher} -> {record.teacher}")
    return lines


def check_classes(
    run: RunRecord, workdir: pathlib.Path, config: ConfigDict, source: Source
) -> str:
    """Checks that a dataset has the classes that a run was trained on.

    `run` is the record in `workdir`, and `source` a split of the dataset of `config`.

    Returns:
      A note if another dataset has as many classes with other names, which may mean the
      same; empty if the names are the same.

    Raises:
      UserError: if the run's own dataset differs, or the number of classes does.
    """
    lines = different_classes(run.class_names, source.class_names)
    if not lines:
        return ""
    message = (
        f"{source.name} has other classes than the run in {workdir}: {first_few(lines)}"
    )
    same_dataset = config.data.name == run.config["data"]["name"]
    if same_dataset or len(run.class_names) != len(source.class_names):
        raise UserError(message)
    return message


def different_classes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Returns a line for each difference; none if the old classes are unknown."""
    if len(old) != len(new):
        return [f"classes: {len(old)} -> {len(new)}"] if old else []
    pairs = enumerate(zip(old, new, strict=True))
    return [f"class {i}: {a!r} -> {b!r}" for i, (a, b) in pairs if a != b]


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes a workdir and locks it against other runs, where the file system can.

    Raises:
      UserError: if another run holds the lock, or the workdir cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        with writing(f"--workdir {workdir}"):
            workdir.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                try:
                    stack.enter_context(lock(workdir / LOCK_FILE))
                except Held:
                    raise UserError(
                        f"another run is at work in {workdir}: wait for it, or end it"
                    ) from None
        yield


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of metrics.jsonl by step; of a repeated step the last."""
    file = workdir / METRICS_FILE
    if not file.exists():
        return []
    records = {}
    for line in file.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            # A killed run may leave half a line behind.
            continue
        records[(record["kind"], record["step"])] = record
    return sorted(records.values(), key=lambda r: (r["step"], r["kind"] != "train"))
