"""Multiply-adds and parameters of a model, read from its traced program.

Nothing is run: the model is traced over shapes, and every matrix product and
convolution of the program is counted. That is the paper's rule: convolutions, linear
maps and attention products; not normalisation, bias, activation or softmax, nor the
fixed weights of an interpolation. Attention products that are not written as matrix
products are marked by a scope.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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

    Args:
      model: a module called as `model(images, train=False)`.
      image_size: height and width in pixels.

    Returns:
      The counts, by the first level of the model's modules.
    """
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x))(variables, images)
    params: dict[str, int] = collections.defaultdict(int)
    for path, leaf in traverse_util.flatten_dict(variables["params"]).items():
        params[path[0]] += math.prod(leaf.shape)
    macs: dict[str, int] = collections.defaultdict(int)
    for path, amount in products(traced.jaxpr):
        if INTERPOLATION_SCOPE not in path:
            # Products outside every parameterised part would be counted under "".
            macs[next((part for part in path if part in params), "")] += amount
    order = list(macs) + [part for part in params if part not in macs]
    return Counts(
        {part: macs.get(part, 0) for part in order},
        {part: params.get(part, 0) for part in order},
    )


def products(
    jaxpr: core.Jaxpr, scope: tuple[str, ...] = (), times: int = 1
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yields the multiply-adds of every product in a program.

    Args:
      jaxpr: the traced program.
      scope: module path of the program that calls this one.
      times: how often this program runs.

    Yields:
      (module path, multiply-adds) of each dot product, of each convolution and of each
      multiplication in PRODUCT_SCOPE, those inside calls and loops included.

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
            yield path, times * _convolution_macs(equation)
        elif name == "mul" and PRODUCT_SCOPE in path:
            yield path, times * math.prod(equation.outvars[0].aval.shape)
        else:
            runs = equation.params["length"] if name == "scan" else 1
            for inner in _inner_programs(equation):
                found = products(inner, path, times * runs)
                if name == "while":
                    if any(True for _ in found):
                        raise NotImplementedError(
                            f"a product in a while loop at {'/'.join(path)} runs an "
                            "unknown number of times: write the loop as a scan"
                        )
                    continue
                yield from found


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


def _convolution_macs(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    # The kernel holds in / groups inputs for each output already.
    return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_features
