"""Whole networks, and their registry."""

from vt_flax.models.registry import (
    create_model,
    list_models,
    model_options,
    model_task,
)

__all__ = ["create_model", "list_models", "model_options", "model_task"]
