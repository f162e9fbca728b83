"""Multiply-adds and parameters of a model, counted in its traced program.

Nothing is run: the model is traced over shapes, and every matrix product and
convolution of the program is counted. That is the paper's rule: convolutions, linear
maps and attention products; not normalization, bias, activation or softmax, nor the
fixed weights of an interpolation. Attention products that are not written as matrix
products are marked by a scope.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.extend import core

from vt_flax.nn.layers import INTERPOLATION_SCOPE, PRODUCT_SCOPE


@dataclasses.dataclass(frozen=True)
class Counts:
    """Multiply-adds for one image, and parameters, of each part of a model.

    Attributes:
      macs: multiply-adds by part (`stem`, `stage2` ... `head`), in execution order.
      params: learned parameters by part. Running statistics are not among them.
    """

    macs: dict[str, int]
    params: dict[str, int]

    @property
    def total_macs(self) -> int:
        """Multiply-adds of the whole model for one image."""
        return sum(self.macs.values())

    @property
    def total_params(self) -> int:
        """Parameters of the whole model."""
        return sum(self.params.values())


def count(model: nn.Module, image_size: tuple[int, int] = (224, 224)) -> Counts:
    """Counts a model's multiply-adds and parameters without running it.

    The counts are those of the formulation `printed`, whatever the model's own.

    Args:
      model: a module called as `model(images, train=False)`.
      image_size: height and width in pixels.

    Returns:
      The counts, by the first level of the model's modules.
    """
    if getattr(model, "formulation", "printed") != "printed":
        model = model.clone(formulation="printed")
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    # Initializing the parameters has no products, so one program has all that counts.
    traced, (_, variables) = jax.make_jaxpr(model.init_with_output, return_shape=True)(
        jax.random.key(0), images
    )
    params: dict[str, int] = collections.defaultdict(int)
    for path, leaf in traverse_util.flatten_dict(variables["params"]).items():
        params[path[0]] += math.prod(leaf.shape)
    macs: dict[str, int] = collections.defaultdict(int)
    for path, amount in products(traced.jaxpr):
        if INTERPOLATION_SCOPE not in path:
            # Products outside of all parts with parameters are counted under "".
            macs[next((part for part in path if part in params), "")] += amount
    order = list(macs) + [part for part in params if part not in macs]
    return Counts(
        {part: macs.get(part, 0) for part in order},
        {part: params.get(part, 0) for part in order},
    )


def products(
    jaxpr: core.Jaxpr,
    scope: tuple[str, ...] = (),
    times: int = 1,
    padding: bool = True,
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yields the multiply-adds of every product in a program.

    Args:
      jaxpr: the traced program.
      scope: module path of the program that calls this one.
      times: how often this program runs.
      padding: whether convolutions multiply the zeros around and between the values of
        their input too, as the paper counts; gradients of strided convolutions mostly
        multiply zeros.

    Yields:
      (module path, multiply-adds) of each dot product, of each convolution and of each
      multiplication in PRODUCT_SCOPE, those inside calls and loops included. Of several
      branches that with the least is taken.

    Raises:
      NotImplementedError: for a product inside a loop whose length is not known.
    """
    for equation in jaxpr.eqns:
        stack = str(equation.source_info.name_stack)
        path = scope + tuple(part for part in stack.split("/") if part)
        name = equation.primitive.name
        if name == "dot_general":
            yield path, times * _dot_macs(equation)
        elif name == "conv_general_dilated":
            yield path, times * _convolution_macs(equation, padding)
        elif name == "mul" and PRODUCT_SCOPE in path:
            yield path, times * math.prod(equation.outvars[0].aval.shape)
        else:
            runs = times * _runs(equation)
            inner = [
                list(products(program, path, runs, padding))
                for program in _inner_programs(equation)
            ]
            if name == "cond":
                inner = [min(inner, key=lambda found: sum(n for _, n in found))]
            if name == "while" and any(inner):
                raise NotImplementedError(
                    f"a product in a while loop at {'/'.join(path)} runs an "
                    "unknown number of times: write the loop as a scan"
                )
            yield from itertools.chain(*inner)


def _runs(equation: Any) -> int:
    """Returns how often the programs in an equation run."""
    params = equation.params
    match equation.primitive.name:
        case "scan":
            return params["length"]
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid)
        case "shard_map":
            shape = params["mesh"].shape
            return math.prod(shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _inner_programs(equation: Any) -> Iterator[core.Jaxpr]:
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot_macs(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[i] for i in contracted)
    return math.prod(equation.outvars[0].aval.shape) * depth


def _convolution_macs(equation: Any, padding: bool) -> int:
    image, kernel = (value.aval.shape for value in equation.invars)
    out = equation.outvars[0].aval.shape
    params = equation.params
    numbers = params["dimension_numbers"]
    if padding:
        # The kernel holds in / groups inputs for each output already.
        return math.prod(out) * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    axes = zip(
        numbers.lhs_spec[2:],
        numbers.rhs_spec[2:],
        numbers.out_spec[2:],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    )
    pairs = [_pairs(image[i], kernel[j], out[k], *rest) for i, j, k, *rest in axes]
    batch, features = (out[i] for i in numbers.out_spec[:2])
    return batch * features * kernel[numbers.rhs_spec[1]] * math.prod(pairs)


def _pairs(
    size: int,
    window: int,
    out: int,
    stride: int,
    around: tuple[int, int],
    spread: int,
    dilation: int,
) -> int:
    """Counts the positions of windows along an axis that lie on an input value."""
    at = np.arange(out)[:, None] * stride + np.arange(window) * dilation - around[0]
    inside = (at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)
    return int(inside.sum())
