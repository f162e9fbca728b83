"""Errors that are the user's to mend, told in one line, and the words for them."""

import difflib
import sys
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Bad input. The message says what, where, and what to do.

    Front doors print it as a single line and exit with its status (see `startup.run`).

    Attributes:
      status: exit status.
      label: what the line begins with.
      everywhere: whether each process of a run raises it after the same step.
    """

    status = 2
    label = "error: "
    everywhere = False


def first_line(error: Exception) -> str:
    """Returns the first line of what an error says; libraries say pages."""
    return str(error).strip().split("\n", 1)[0]


def device_memory_error(error: Exception) -> UserError | None:
    """Returns the error to show where a device ran out of memory, else None."""
    # A program that has not imported JAX has no such error.
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
    """Returns the first of some lines in one, and dots if there are more."""
    return "; ".join(lines[:count]) + ("; ..." if len(lines) > count else "")


def first_names(names: Iterable[str], count: int = 5) -> str:
    """Returns the first of some names, with commas, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """Returns `; did you mean ...?` for a misspelt `name`, or the whole choice.

    Args:
      name: what the user wrote.
      candidates: what would have been accepted.
      count: how many suggestions to make at most.

    Returns:
      A clause to append to an error message; empty when there are no candidates.
    """
    candidates = sorted(set(candidates))
    matches = difflib.get_close_matches(name, candidates, n=count, cutoff=0.5)
    if matches:
        return f"; did you mean {' or '.join(matches)}?"
    return f"; choose from {', '.join(candidates)}" if candidates else ""
