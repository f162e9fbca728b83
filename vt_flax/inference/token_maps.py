"""Where each token of a network looks: the coefficients of its tokenizers."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util


def token_coefficients(
    model: nn.Module, variables: dict[str, Any], images: jax.Array
) -> dict[str, np.ndarray]:
    """Returns the coefficient maps of every module with tokenizer coefficients.

    Args:
      model: a network of VT modules.
      variables: its parameters and batch statistics.
      images: (batch, H, W, 3), normalised.

    Returns:
      By module, in order, (batch, L, h, w) float32; maps of several heads are averaged.
      Each map sums to 1 over its pixels.
    """
    found = jax.jit(functools.partial(_coefficients, model))(variables, images)
    maps = {}
    for path in sorted(found, key=_natural):
        coefficients = np.asarray(found[path], np.float32)
        if coefficients.ndim == 5:
            coefficients = coefficients.mean(axis=1)
        maps[_module(path)] = coefficients
    return maps


def module_coefficients(
    model: nn.Module, variables: dict[str, Any], images: jax.Array
) -> dict[str, jax.Array]:
    """Returns the maps of every module with tokenizer coefficients, head by head.

    To be traced, inside a step: nothing is compiled here, or leaves the devices.

    Args:
      model: a network of VT modules.
      variables: its parameters and batch statistics.
      images: (batch, H, W, 3), normalised.

    Returns:
      By module as in `token_coefficients`, (batch, heads, L, h, w) float32; of a
      tokenizer without heads there is one. Each map sums to 1 over its pixels.
    """
    found = _coefficients(model, variables, images)
    return {
        _module(path): (maps if maps.ndim == 5 else maps[:, None]).astype(jnp.float32)
        for path, maps in sorted(found.items(), key=lambda item: _natural(item[0]))
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


def has_coefficients(
    model: nn.Module, variables: dict[str, Any], size: tuple[int, int]
) -> bool:
    """Tells whether a network has modules with tokenizer coefficients.

    Args:
      model: any network.
      variables: its parameters and batch statistics.
      size: height and width of its input. Nothing is computed.
    """
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    found = functools.partial(_coefficients, model)
    return bool(jax.eval_shape(found, variables, images))


def _coefficients(
    model: nn.Module, variables: dict[str, Any], images: jax.Array
) -> dict[tuple[str, ...], jax.Array]:
    """Returns what the tokenizers sow, by path."""
    _, sown = model.apply(variables, images, train=False, mutable=["intermediates"])
    flat = traverse_util.flatten_dict(sown.get("intermediates", {}))
    found = {path: sown for path, sown in flat.items() if path[-1] == "coefficients"}
    return {path: maps for path, (maps,) in found.items()}


def _module(path: tuple[str, ...]) -> str:
    """Returns `module2`, or `level3` of `level3_tokenizer`, or else `stage`."""
    named = (part for part in path if part.startswith(("module", "level")))
    return next(named, "stage").partition("_")[0]


def _natural(path: tuple[str, ...]) -> list:
    """Sorts `module10` after `module9`."""
    parts = re.split(r"(\d+)", "/".join(path))
    return [int(part) if part.isdigit() else part for part in parts]
