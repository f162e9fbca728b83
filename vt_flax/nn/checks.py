"""Checks of options, shared by layers and networks."""

from collections.abc import Collection
from typing import Any

from vt_flax.errors import UserError, nearest


def check_choice(choices: Collection[str], **options: Any) -> None:
    """Raises `UserError` for an option that is none of the choices."""
    for name, value in options.items():
        if value not in choices:
            raise UserError(
                f"{name}={value!r} is not known{nearest(str(value), choices)}"
            )


def check_at_least(least: float, **options: float) -> None:
    """Raises `UserError` for an option below `least`."""
    for name, value in options.items():
        if value < least:
            raise UserError(f"{name}={value}: must be at least {least}")
