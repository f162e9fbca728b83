"""Attention maps of tokens, collected by module.

A tokenizer's coefficients are a softmax over the pixels for each token, a projector's a
softmax over the tokens for each pixel. Modules sow both (`nn.tokenizers`,
`nn.projector`).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vt_flax.models.vt_fpn import VTFPN
from vt_flax.models.vt_resnet import VTResNet

Sown = dict[tuple[str, ...], jax.Array]
SOWN = ("coefficients", "projection")


@dataclasses.dataclass(frozen=True)
class TokenMaps:
    """Attention maps of a module for a batch of images.

    Attributes:
      kind: kind of the tokenizer: `static` (v4: filter), `dynamic`, `recurrent`,
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
        _module(path): _with_heads(maps).astype(jnp.float32)
        for path, maps in sown.items()
        if path[-1] == "coefficients"
    }


def tokenizer_kinds(model: nn.Module) -> dict[str, str]:
    """Returns the kind of each module's tokenizer, see `TokenMaps`, in order.

    Modules are `module1` and so on in a VT-ResNet, `stage` where it has no projectors,
    and `level2` to `level5` in a VT-FPN; other networks have none.
    """
    if isinstance(model, VTFPN):
        return {f"level{level}": model.vt.tokenizer for level in range(2, 6)}
    if not isinstance(model, VTResNet):
        return {}
    if not model.vt.projector:
        return {"stage": model.vt.first_tokenizer}
    later = [model.vt.tokenizer] * (model.stage_sizes[3] - 1)
    kinds = [model.vt.first_tokenizer, *later]
    return {f"module{i}": kind for i, kind in enumerate(kinds, 1)}


def _with_heads(maps: Any) -> Any:
    return maps[:, None] if maps.ndim == 4 else maps


def _module(path: tuple[str, ...]) -> str:
    """Returns `module2`, or `level3` of `level3_tokenizer`; else `stage`."""
    named = (part for part in path if part.startswith(("module", "level")))
    return next(named, "stage").partition("_")[0]
