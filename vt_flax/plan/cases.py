"""The cases of a plan: each topology at each point of a sweep."""

import functools
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.models import model_task
from vt_flax.plan.dataset_facts import Facts, find_facts
from vt_flax.plan.planning import Case
from vt_flax.plan.sweep import GROUP_SIZE, PER_DEVICE
from vt_flax.plan.topology import Topology
from vt_flax.training.config import resolve
from vt_flax.training.config_files import read_file


def make_cases(
    file: str,
    overrides: Sequence[str],
    places: Sequence[Callable[[ConfigDict], Topology]],
    points: Sequence[Mapping[str, str]],
    chip: int = 0,
    examples: int = 0,
) -> list[Case]:
    """Returns the cases, and opens the dataset for its size.

    Args:
      file: the configuration, as `load_config` takes it.
      overrides: of the configuration.
      places: give the topology for a configuration.
      points: of a sweep, see `parse_sweep`.
      chip: examples per chip; 0 for the configuration's own batch size.
      examples: in an epoch, if the user has said so.

    Raises:
      UserError: for what cannot be planned.
    """
    written = read_file(file)
    facts: dict[str, Facts] = {}
    cases = []
    for point in points:
        per_device = point.get(GROUP_SIZE) == PER_DEVICE
        given = [
            *overrides,
            *(
                f"--config.{key}={value}"
                for key, value in point.items()
                if not (key == GROUP_SIZE and per_device)
            ),
        ]
        config = resolve(written, given)
        # What the facts depend on, and what they are asked for.
        known = repr((config.data, config.segmentation, config.model))
        if known not in facts:
            facts[known] = _facts(config, examples)
        for find in places:
            place = find(config)
            batch = place.batch_size(chip) if chip else config.batch_size
            make = functools.partial(
                _configure,
                written,
                given,
                place.devices if per_device else 0,
                facts[known].classes,
            )
            cases.append(Case(place, make, batch, facts[known], point))
    return cases


def _configure(
    written: ConfigDict,
    overrides: Sequence[str],
    devices: int,
    classes: int,
    batch: int,
) -> ConfigDict:
    """Returns the configuration for a batch size, with the dataset's classes.

    Args:
      written: the file's; what it derives from the batch size follows.
      overrides: of the configuration.
      devices: number of devices, if BatchNorm groups are to be a device's examples;
        else 0.
      classes: of the dataset; 0 if they are not known.
      batch: batch size, over all devices.
    """
    made = resolve(written, [*overrides, f"--config.batch_size={batch}"])
    made.model.num_classes = made.model.num_classes or classes
    if devices:
        group_size = max(1, batch // (devices * made.grad_accum_steps))
        made.model.bn_group_size = group_size
    return made


def _facts(config: ConfigDict, examples: int) -> Facts:
    facts = find_facts(config, examples)
    if not facts.classes and model_task(config.model.name) == "segmentation":
        raise UserError(
            f"dataset {config.data.name!r} does not tell how many classes it has: set "
            "model.num_classes"
        )
    return facts
