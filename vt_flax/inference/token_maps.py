"""Where each token of a network looks, and where it writes.

The coefficients of a tokenizer are a softmax over the pixels for each token, those of a
projector a softmax over the tokens for each pixel. Modules sow them (`nn.tokenizers`,
`nn.projector`); here they are collected, by module.
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
    """What the tokens of a module have to do with each pixel of a batch of images.

    Attributes:
      kind: of the tokenizer: `static` (v4: filter), `dynamic`, `recurrent`,
        `clustering` or `pooling`.
      coefficients: (batch, heads, L, h, w), float32; each map sums to 1 over its
        pixels. None of a pooling tokenizer.
      first: number of the first of these tokens. A dynamic tokenizer makes half of
        them anew, and puts these behind those that it keeps.
      projection: (batch, heads, L, h, w), float32, of all tokens: at each pixel they
        sum to 1 over the tokens. None where nothing is written back.
    """

    kind: str
    coefficients: np.ndarray | None
    first: int = 0
    projection: np.ndarray | None = None


def module_coefficients(
    model: nn.Module, variables: dict[str, Any], images: jax.Array
) -> dict[str, jax.Array]:
    """Returns the maps of every module with tokenizer coefficients, head by head.

    To be traced, inside a step: nothing is compiled here, or leaves the devices.

    Args:
      model: a network of VT modules.
      variables: its parameters and batch statistics.
      images: (batch, H, W, 3), normalized.

    Returns:
      By module, in order, (batch, heads, L, h, w) float32; of a tokenizer without heads
      there is one. Each map sums to 1 over its pixels.
    """
    found = sown_maps(model, variables, images)
    return {
        _module(path): _by_head(found[path]).astype(jnp.float32)
        for path in sorted(found, key=_natural)
        if path[-1] == "coefficients"
    }


def module_shapes(
    model: nn.Module, variables: dict[str, Any], size: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of `module_coefficients` without the batch, in order.

    Args:
      model: any network; of one without coefficients there are none.
      variables: its parameters and batch statistics, or their shapes.
      size: height and width of its input. Nothing is computed.
    """
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    found = jax.eval_shape(
        functools.partial(module_coefficients, model), variables, images
    )
    # JAX gives dictionaries back in the order of letters.
    names = sorted(found, key=lambda name: _natural((name,)))
    return {name: found[name].shape[1:] for name in names}


def tokenizer_kinds(
    model: nn.Module, variables: dict[str, Any], size: tuple[int, int]
) -> dict[str, str]:
    """Returns the kind of each module's tokenizer, see `TokenMaps`; in order.

    Args:
      model: any network.
      variables: its parameters and batch statistics.
      size: height and width of its input. Nothing is computed.
    """
    found: dict[tuple[str, ...], str] = {}

    def watch(call, args, kwargs, context):
        if context.method_name == "__call__" and (kind := _kind(context.module)):
            found[context.module.path] = kind
        return call(*args, **kwargs)

    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    return {_module(path): found[path] for path in sorted(found, key=_natural)}


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


def by_module(found: Sown, kinds: dict[str, str]) -> dict[str, TokenMaps]:
    """Arranges what was sown by module.

    Args:
      found: see `sown_maps`.
      kinds: see `tokenizer_kinds`.
    """
    parts: dict[str, dict[str, np.ndarray]] = {module: {} for module in kinds}
    for path, maps in found.items():
        parts[_module(path)][path[-1]] = _by_head(np.asarray(maps, np.float32))
    return {
        module: TokenMaps(
            kind,
            parts[module].get("coefficients"),
            # As many as it made are kept, and come first.
            parts[module]["coefficients"].shape[2] if kind == "dynamic" else 0,
            parts[module].get("projection"),
        )
        for module, kind in kinds.items()
    }


def _by_head(maps: Any) -> Any:
    return maps[:, None] if maps.ndim == 4 else maps


def _kind(module: nn.Module) -> str:
    """Returns a tokenizer's kind; empty of any other module."""
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


def _module(path: tuple[str, ...]) -> str:
    """Returns `module2`, or `level3` of `level3_tokenizer`; else `stage`."""
    named = (part for part in path if part.startswith(("module", "level")))
    return next(named, "stage").partition("_")[0]


def _natural(path: tuple[str, ...]) -> list:
    """Sorts `module10` after `module9`."""
    parts = re.split(r"(\d+)", "/".join(path))
    return [int(part) if part.isdigit() else part for part in parts]
