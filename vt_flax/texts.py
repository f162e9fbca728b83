"""Text for terminals and programs, of values of other people's making."""

import json
import math
import unicodedata
from typing import Any

# Control characters, halves of surrogates (bytes of a name that is no text), ends of
# lines and paragraphs.
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """Returns a text with escapes for what a terminal would obey, such as ESC."""
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in UNPRINTABLE else letter
        for letter in text
    )


def json_text(value: Any) -> str:
    """Returns a value as JSON, which has no infinity and NaN: they become null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
