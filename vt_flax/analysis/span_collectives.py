"""What chips tell each other in a training step, by the span of BatchNorm."""

from typing import Any

from ml_collections import ConfigDict

from vt_flax.analysis.collectives import KINDS
from vt_flax.analysis.compiled_step import costs
from vt_flax.errors import UserError


def collective_rows(
    config: ConfigDict, topology: str, chip: int
) -> list[dict[str, Any]]:
    """Counts the collectives of a compiled step by the span of batch normalisation.

    Spans: all examples; those of a chip, of two and of four chips; frozen.

    Args:
      config: a resolved configuration.
      topology: such as `v5e:2x4`.
      chip: examples on each chip.

    Raises:
      UserError: if libtpu is not there, or cannot compile the step, or the model has no
        span.
    """
    if "norm_span" not in config.model:
        raise UserError(f"model {config.model.name} has no norm_span")
    spans = {
        "global": "all examples",
        "frozen": "none: running statistics",
        str(chip): "groups on one chip",
        str(2 * chip): "groups on two chips",
        str(4 * chip): "groups on four chips",
    }
    configs = []
    for span in spans:
        changed = config.copy_and_resolve_references()
        changed.model.norm_span = span
        configs.append(changed)
    found = costs(configs, topology, chip)
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
