"""Attention maps of tokens, collected by module.

A tokenizer's coefficients are a softmax over the pixels for each token, a projector's a
softmax over the tokens for each pixel. Modules sow both (`nn.tokenizers`,
`nn.projector`).
"""

import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vt_flax.nn.tokenizers import (
    ClusteringTokenizer,
    DynamicTokenizer,
    PoolingTokenizer,
    StaticTokenizer,
)

Sown = dict[tuple[str, ...], jax.Array]
SOWN = ("coefficients", "projection")


@dataclasses.dataclass(frozen=True)
class TokenMaps:
    """Attention maps of a module for a batch of images.

    Attributes:
      kind: of the tokenizer: `static` (v4: filter), `dynamic`, `recurrent`,
        `clustering` or `pooling`.
      coefficients: (batch, heads, tokens, h, w), float32; each map has sum 1 over its
        pixels. None for a pooling tokenizer.
      first: index of the first of these tokens. A dynamic tokenizer extracts half of
        the tokens anew, and appends them to those that it keeps.
      projection: (batch, heads, tokens, h, w), float32, of all tokens, with sum 1 over
        the tokens at each pixel. None without a projector.
    """

    kind: str
    coefficients: np.ndarray | None
    first: int = 0
    projection: np.ndarray | None = None


def sown_maps(model: nn.Module, variables: dict[str, Any], images: jax.Array) -> Sown:
    """Returns what tokenizers and projectors sow, by path; may be compiled.

    Args:
      model: any network.
      variables: its parameters and batch statistics.
      images: (batch, H, W, 3), normalized.
    """
    _, sown = model.apply(variables, images, train=False, mutable=["intermediates"])
    flat = traverse_util.flatten_dict(sown.get("intermediates", {}))
    return {path: maps for path, (maps,) in flat.items() if path[-1] in SOWN}


def by_module(sown: Sown, kinds: dict[str, str]) -> dict[str, TokenMaps]:
    """Groups the result of `sown_maps` by module; `kinds`: see `tokenizer_kinds`."""
    maps: dict[str, dict[str, np.ndarray]] = {module: {} for module in kinds}
    for path, value in sown.items():
        maps[_module(path)][path[-1]] = _with_heads(np.asarray(value, np.float32))
    return {
        module: TokenMaps(
            kind,
            maps[module].get("coefficients"),
            # As many tokens as it extracts are kept, and come first.
            maps[module]["coefficients"].shape[2] if kind == "dynamic" else 0,
            maps[module].get("projection"),
        )
        for module, kind in kinds.items()
    }


def module_coefficients(
    model: nn.Module, variables: dict[str, Any], images: jax.Array
) -> dict[str, jax.Array]:
    """Returns tokenizer coefficients by module: (batch, heads, tokens, h, w), float32.

    For use inside a compiled step. Arguments are those of `sown_maps`. A tokenizer
    without heads has one; a pooling tokenizer is missing.
    """
    sown = sown_maps(model, variables, images)
    return {
        _module(path): _with_heads(sown[path]).astype(jnp.float32)
        for path in sorted(sown, key=_natural)
        if path[-1] == "coefficients"
    }


def module_shapes(
    model: nn.Module, variables: dict[str, Any], size: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Returns shapes of `module_coefficients` without the batch; computes nothing.

    Args:
      model: any network.
      variables: its parameters and batch statistics, or their shapes.
      size: height and width of its input.
    """
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    maps = jax.eval_shape(
        functools.partial(module_coefficients, model), variables, images
    )
    # JAX sorts the keys of dictionaries as text.
    return {
        name: maps[name].shape[1:] for name in sorted(maps, key=lambda x: _natural([x]))
    }


def tokenizer_kinds(
    model: nn.Module, variables: dict[str, Any], size: tuple[int, int]
) -> dict[str, str]:
    """Returns the kind of each module's tokenizer, see `TokenMaps`, in order.

    Arguments are those of `module_shapes`.
    """
    kinds: dict[tuple[str, ...], str] = {}

    def record(call, args, kwargs, context):
        if context.method_name == "__call__" and (kind := _kind(context.module)):
            kinds[context.module.path] = kind
        return call(*args, **kwargs)

    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    return {_module(path): kinds[path] for path in sorted(kinds, key=_natural)}


def _kind(module: nn.Module) -> str:
    """Returns the kind of a tokenizer, and an empty string for any other module."""
    match module:
        case StaticTokenizer():
            return "static"
        case DynamicTokenizer():
            return "dynamic" if module.replace == "half" else "recurrent"
        case ClusteringTokenizer():
            return "clustering"
        case PoolingTokenizer():
            return "pooling"
    return ""


def _with_heads(maps: Any) -> Any:
    return maps[:, None] if maps.ndim == 4 else maps


def _module(path: tuple[str, ...]) -> str:
    """Returns `module2`, or `level3` of `level3_tokenizer`; else `stage`."""
    named = (part for part in path if part.startswith(("module", "level")))
    return next(named, "stage").partition("_")[0]


def _natural(path: tuple[str, ...]) -> list:
    """Sorts `module10` after `module9`."""
    parts = re.split(r"(\d+)", "/".join(path))
    return [int(part) if part.isdigit() else part for part in parts]
