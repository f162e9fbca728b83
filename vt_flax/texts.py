"""Text for terminals and JSON, from names and values of any origin."""

import json
import math
import unicodedata
from typing import Any

# Control characters, surrogates (bytes of a file's name that are not UTF-8), and
# separators of lines and paragraphs.
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """Escapes the characters that control a terminal, such as ESC."""
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in UNPRINTABLE else letter
        for letter in text
    )


def json_text(value: Any) -> str:
    """Returns a value as JSON; infinity and NaN become null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
