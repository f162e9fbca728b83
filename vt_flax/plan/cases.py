"""The cases of a plan: each topology at each point of a sweep."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.plan.machine import this_machine
from vt_flax.plan.topology import HERE, Topology, parse_topology
from vt_flax.training.config import resolve
from vt_flax.training.config_files import read_file
from vt_flax.training.durations import duration_steps
from vt_flax.training.tasks import task_of

BATCH, GROUP_SIZE = "batch_size", "model.bn_group_size"
SHORT = {"batch": BATCH, "bn_group_size": GROUP_SIZE}
# BatchNorm groups of the examples on one device, whatever the batch size.
PER_DEVICE = "per_device"
# ImageNet's training split, of `imagenet2012` and its copies by `prepare_data`.
IMAGENET = re.compile(r"imagenet2012(_\d+)?(:.*)?")
IMAGENET_EXAMPLES, IMAGENET_CLASSES = 1_281_167, 1000


class Facts(NamedTuple):
    """Number of training examples and of classes of a dataset, 0 if unknown."""

    examples: int
    classes: int


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration to plan on a topology.

    Attributes:
      place: the topology.
      config: the resolved configuration; `batch_size` is over all devices.
      facts: size of the dataset.
      swept: keys that a sweep has set, as the user wrote them.
    """

    place: Topology
    config: ConfigDict
    facts: Facts
    swept: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Batch size, over all devices."""
        return self.config.batch_size

    @property
    def steps(self) -> int:
        """Number of steps of the run; 0 if the dataset's size is unknown."""
        examples, duration = self.facts.examples, self.config.duration
        if not examples and "step" not in duration:
            return 0
        return duration_steps(duration, examples=examples or 1, batch=self.batch)

    @property
    def label(self) -> str:
        """Topology and swept keys."""
        words = [f"{key} {value}" for key, value in self.swept.items()]
        return ", ".join([self.place.name, *words])


def parse_sweep(words: Sequence[str]) -> list[dict[str, str]]:
    """Returns the points of a sweep: the product of all keys' values.

    Args:
      words: such as `["batch=64,128", "model.dtype=bfloat16,float32"]`. A comma within
        brackets does not separate values.

    Returns:
      Values by key of the configuration, as on the command line; one empty point
      without words.

    Raises:
      UserError: for a word without values, or a repeated key.
    """
    values: dict[str, list[str]] = {}
    for word in words:
        key, _, text = word.partition("=")
        key = SHORT.get(key, key).removeprefix("config.")
        found = [value for value in re.split(r",(?![^\[(]*[\])])", text) if value]
        if not key or not found:
            raise UserError(f"--sweep {word}: write KEY=a,b,c")
        if key in values:
            raise UserError(f"--sweep: {key} is there twice")
        values[key] = found
    return [
        dict(zip(values, point, strict=True))
        for point in itertools.product(*values.values())
    ]


def make_cases(
    file: str,
    overrides: Sequence[str],
    places: Sequence[str],
    points: Sequence[Mapping[str, str]],
    chip: int | None = None,
    examples: int = 0,
) -> list[Case]:
    """Returns the cases, and opens the dataset for its size.

    Args:
      file: the configuration, as `load_config` takes it.
      overrides: of the configuration.
      places: names of topologies.
      points: of a sweep, see `parse_sweep`.
      chip: examples per chip, or None for the configuration's own batch size.
      examples: number of examples in an epoch, if the user has given it.

    Raises:
      UserError: for what cannot be planned.
    """
    if chip and any(BATCH in point for point in points):
        raise UserError(f"--chip {chip} and a sweep of {BATCH}: one or the other")
    written = read_file(file)
    cases = []
    for point in points:
        per_device = point.get(GROUP_SIZE) == PER_DEVICE
        values = dict(point)
        if per_device:
            del values[GROUP_SIZE]
        given = [*overrides, *(f"--config.{k}={v}" for k, v in values.items())]
        config = resolve(written, given)
        facts = find_facts(config, examples)
        for name in places:
            place = this_machine(config) if name == HERE else parse_topology(name)
            batch = place.batch_size(chip) if chip else config.batch_size
            # What the file derives from the batch size follows it.
            made = resolve(written, [*given, f"--config.batch_size={batch}"])
            made.model.num_classes = facts.classes
            if per_device:
                microbatches = place.devices * made.grad_accum_steps
                made.model.bn_group_size = max(1, batch // microbatches)
            cases.append(Case(place, made, facts, point))
    return cases


def find_facts(config: ConfigDict, examples: int = 0) -> Facts:
    """Returns the size of the configured dataset.

    Of a dataset that is not prepared, ImageNet's size is known; for others the
    configuration must give the number of classes.

    Args:
      config: a resolved configuration.
      examples: number of examples in the training split, if the user has given it.

    Raises:
      UserError: if the number of classes is unknown.
    """
    data, classes = config.data, config.model.num_classes
    if examples and classes:
        return Facts(examples, classes)
    try:
        source = task_of(config).open_source(config, data.train_split)
    except UserError as error:
        if IMAGENET.fullmatch(data.name):
            examples = examples or IMAGENET_EXAMPLES * (data.train_split == "train")
            return Facts(examples, classes or IMAGENET_CLASSES)
        if classes:
            return Facts(examples, classes)
        raise UserError(
            f"{error}; to plan without the dataset set model.num_classes"
        ) from error
    return Facts(examples or len(source), classes or len(source.class_names))
