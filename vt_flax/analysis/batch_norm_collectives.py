"""Collectives in a training step, by the size of BatchNorm's groups."""

from typing import Any

from ml_collections import ConfigDict

from vt_flax.plan.collectives import KINDS
from vt_flax.plan.compiled_step import costs
from vt_flax.plan.topology import parse_topology


def collective_rows(config: ConfigDict, topology: str) -> list[dict[str, Any]]:
    """Counts the collectives of a compiled step by BatchNorm's group size.

    Statistics over all examples; over those of one, two and four devices; frozen.

    Args:
      config: a resolved configuration; `batch_size` is sharded over all devices.
      topology: such as `v5e:2x4`.

    Raises:
      UserError: if libtpu is missing, or cannot compile the step.
    """
    devices = parse_topology(topology).devices
    examples = config.batch_size // devices
    words = {1: "one device", 2: "two devices", 4: "four devices"}
    settings = {"all examples": {}, "none: running statistics": {"bn_frozen": True}} | {
        f"groups on {word}": {"bn_group_size": number * examples}
        for number, word in words.items()
        if number <= devices
    }
    configs = []
    for setting in settings.values():
        changed = config.copy_and_resolve_references()
        changed.model.update({"bn_group_size": 0, "bn_frozen": False} | setting)
        configs.append(changed)
    found = costs(configs, topology)
    return [
        {
            "statistics over": statistics,
            "bn_group_size": changed.model.bn_group_size,
            **{
                kind: cost["collectives"].get(kind, {"count": 0})["count"]
                for kind in KINDS
            },
        }
        for statistics, changed, cost in zip(settings, configs, found, strict=True)
    ]
