"""Errors that a user can fix, printed as one line, and words for their messages."""

import difflib
import sys
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Bad input; the message is one line: what is wrong, where, and what to do.

    Commands print it and exit with its status; see `startup.run`.

    Attributes:
      status: exit status.
      label: beginning of the printed line.
      everywhere: whether every process of a run raises it, after the same step.
    """

    status = 2
    label = "error: "
    everywhere = False


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message; libraries write pages."""
    return str(error).strip().split("\n", 1)[0]


def device_memory_error(error: Exception) -> UserError | None:
    """Returns a `UserError` if a device ran out of memory, else None."""
    # Without JAX imported, there is no such error.
    jax = sys.modules.get("jax")
    if not jax or not isinstance(error, jax.errors.JaxRuntimeError):
        return None
    if "RESOURCE_EXHAUSTED" not in str(error):
        return None
    return UserError(
        f"a device is out of memory ({first_line(error)[:200]}): train with gradient "
        "accumulation (grad_accum_steps=2 or more) or with a smaller batch_size; "
        "evaluate with a smaller eval.batch_size, predict with a smaller --batch"
    )


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Returns a line `key: old -> new` for each value in which two dicts differ."""
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def first_few(lines: Sequence[str], count: int = 3) -> str:
    """Joins the first lines by semicolons, with dots if there are more."""
    return "; ".join(lines[:count]) + ("; ..." if len(lines) > count else "")


def first_names(names: Iterable[str], count: int = 5) -> str:
    """Joins the first names by commas, with the number of the others."""
    names = list(names)
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """Returns a clause to append to a message: `; did you mean ...?`, or all choices.

    Args:
      name: the unknown name.
      candidates: the known names.
      count: largest number of suggestions.
    """
    candidates = sorted(set(candidates))
    matches = difflib.get_close_matches(name, candidates, n=count, cutoff=0.5)
    if matches:
        return f"; did you mean {' or '.join(matches)}?"
    return f"; choose from {', '.join(candidates)}" if candidates else ""
