"""Visual Transformers (arXiv 2006.03677) in JAX and Flax, from one CPU to a TPU pod."""

import importlib
from typing import TYPE_CHECKING, Any

from vt_flax.version import __version__

if TYPE_CHECKING:
    from vt_flax.inference.predictor import load
    from vt_flax.models import create_model, list_models
    from vt_flax.training.api import evaluate, train

__all__ = [
    "__version__",
    "create_model",
    "evaluate",
    "list_models",
    "load",
    "train",
]

# Imported when first used: JAX, TensorFlow and Orbax take seconds.
_MODULES = {
    "create_model": "vt_flax.models",
    "evaluate": "vt_flax.training.api",
    "list_models": "vt_flax.models",
    "load": "vt_flax.inference.predictor",
    "train": "vt_flax.training.api",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
