"""Visual Transformers (arXiv 2006.03677) in JAX and Flax, from one CPU to a TPU pod."""

from vt_flax.models import create_model, list_models
from vt_flax.version import __version__

__all__ = ["__version__", "create_model", "list_models"]
