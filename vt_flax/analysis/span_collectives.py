"""Collectives in a training step, by the size of BatchNorm's groups."""

from typing import Any

from ml_collections import ConfigDict

from vt_flax.analysis.collectives import KINDS
from vt_flax.analysis.compiled_step import costs
from vt_flax.analysis.topology import parse_topology
from vt_flax.errors import UserError


def collective_rows(config: ConfigDict, topology: str) -> list[dict[str, Any]]:
    """Counts the collectives of a compiled step by `model.norm_span`.

    Statistics over all examples; over those of one, two and four devices; frozen.

    Args:
      config: a resolved configuration; `batch_size` is sharded over all devices.
      topology: such as `v5e:2x4`.

    Raises:
      UserError: if libtpu is missing, or cannot compile the step, or the model has no
        norm_span.
    """
    if "norm_span" not in config.model:
        raise UserError(f"model {config.model.name} has no norm_span")
    devices = parse_topology(topology).devices
    examples = config.batch_size // devices
    words = {1: "one device", 2: "two devices", 4: "four devices"}
    spans = {"global": "all examples", "frozen": "none: running statistics"} | {
        str(number * examples): f"groups on {word}"
        for number, word in words.items()
        if number <= devices
    }
    configs = []
    for span in spans:
        changed = config.copy_and_resolve_references()
        changed.model.norm_span = span
        configs.append(changed)
    found = costs(configs, topology)
    return [
        {
            "norm_span": span,
            "statistics over": meaning,
            **{
                kind: cost["collectives"].get(kind, {"count": 0})["count"]
                for kind in KINDS
            },
        }
        for (span, meaning), cost in zip(spans.items(), found, strict=True)
    ]
