"""Sweeps over keys of the configuration: `KEY=a,b,c ...`."""

import itertools
import re
from collections.abc import Sequence

from vt_flax.errors import UserError

BATCH, GROUP_SIZE = "batch_size", "model.bn_group_size"
SHORT = {"batch": BATCH, "bn_group_size": GROUP_SIZE}
# BatchNorm groups of the examples on one device, whatever the batch size.
PER_DEVICE = "per_device"


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
