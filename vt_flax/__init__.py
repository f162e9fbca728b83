"""Visual Transformers (arXiv 2006.03677) in JAX and Flax, from one CPU to a TPU pod."""

from typing import TYPE_CHECKING, Any

from vt_flax.models import create_model, list_models
from vt_flax.version import __version__

if TYPE_CHECKING:
    from vt_flax.inference.predictor import load

__all__ = ["__version__", "create_model", "list_models", "load"]


def __getattr__(name: str) -> Any:
    """Imports `load` where it is first asked for: what it needs takes seconds."""
    if name == "load":
        from vt_flax.inference.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
