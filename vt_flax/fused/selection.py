"""Choice of the fastest formulation of a network, by timing them on a device."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vt_flax.errors import device_memory_error, first_line

# More examples take longer, and are computed alike.
MAX_EXAMPLES = 128
# Relative error in the norm of logits or gradients. Rounding to bfloat16 in another
# order moves the gradients of a fresh network by some hundredths; a wrong kernel by
# more.
TOLERANCE = 0.25
# Timed steps, after one that warms up.
STEPS = 5


@dataclasses.dataclass(frozen=True)
class Trial:
    """Result of trying a formulation on a device.

    Attributes:
      milliseconds: median time of a forward and backward pass; None if it was not
        timed, as where its program is that of an earlier formulation.
      problem: why it must not be used; empty if it computes what `printed` computes.
    """

    milliseconds: float | None = None
    problem: str = ""


def fastest(trials: Mapping[str, Trial]) -> str:
    """Returns the formulation with the shortest time; `printed` if none has a time."""
    timed = {name: t.milliseconds for name, t in trials.items() if t.milliseconds}
    return min(timed, key=timed.__getitem__, default="printed")


def try_formulations(
    make: Callable[[str], nn.Module],
    size: tuple[int, int],
    device: jax.Device,
    examples: int,
    others: Sequence[str],
    *,
    timed: bool = True,
) -> Iterator[Trial]:
    """Yields the trial of `printed`, then of others, which must agree with it.

    Each is a fresh network in training, on noise: its forward and backward pass is
    compiled, run and timed. If `printed` does not fit into the device's memory, all are
    compared and timed on fewer examples, on which it does, and it is not chosen.

    Args:
      make: returns the network in a formulation; all have the same parameters.
      size: height and width of its input in pixels.
      device: where it runs.
      examples: batch size; at most MAX_EXAMPLES are taken.
      others: names of the formulations besides `printed`.
      timed: whether to time them.
    """
    printed = make("printed")
    examples = min(examples, MAX_EXAMPLES)
    noise = np.random.default_rng(0).normal(size=(examples, *size, 3))
    images = jax.device_put(noise.astype(np.float32), device)
    variables = jax.jit(lambda x: printed.init(jax.random.key(0), x))(images[:1])
    problem = ""
    while True:
        try:
            program = _lower(printed, variables, images)
            expected, milliseconds = _run(program, variables, images, timed)
            break
        except Exception as error:
            if len(images) == 1 or not device_memory_error(error):
                raise
            problem = problem or f"out of memory with {examples} examples"
            images = images[: len(images) // 2]
    yield Trial(None if problem else milliseconds, problem)

    programs = {program.as_text()}
    for name in others:
        try:
            program = _lower(make(name), variables, images)
            text = program.as_text()
            if text in programs:
                yield Trial()
                continue
            programs.add(text)
            results, milliseconds = _run(program, variables, images, timed)
            problem = _difference(results, expected)
        # A compiler fails in as many ways as there are programs.
        except Exception as error:
            reason = first_line(error)[:200] or type(error).__name__
            problem = "out of memory" if device_memory_error(error) else reason
        yield Trial(None if problem else milliseconds, problem)


def _lower(
    model: nn.Module, variables: dict[str, Any], images: jax.Array
) -> jax.stages.Lowered:
    """Returns the program that computes gradients and logits in training.

    BatchNorm takes its statistics over all images if they are not whole groups.
    """
    group_size = getattr(model, "bn_group_size", 0)
    if group_size and len(images) % group_size:
        model = model.clone(bn_group_size=0)

    def loss(
        params: dict, variables: dict, images: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits, _ = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return jnp.sum(jnp.square(logits)), logits

    gradients = jax.jit(jax.grad(loss, has_aux=True))
    return gradients.lower(variables["params"], variables, images)


def _run(
    program: jax.stages.Lowered,
    variables: dict[str, Any],
    images: jax.Array,
    timed: bool,
) -> tuple[dict[str, np.ndarray], float | None]:
    """Returns flat logits and gradients on the host, and the time of a step in ms."""
    compiled = program.compile()
    arguments = (variables["params"], variables, images)
    gradients, logits = jax.device_get(compiled(*arguments))
    flat = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients)])
    results = {"logits": logits.ravel(), "gradients": flat}
    if not timed:
        return results, None
    seconds = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - begin)
    return results, 1e3 * statistics.median(seconds)


def _difference(
    results: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> str:
    """Returns how results differ from those of `printed`; empty if they agree."""
    for name, value in expected.items():
        if not np.isfinite(results[name]).all():
            return f"{name} are not finite"
        norm = max(float(np.linalg.norm(value)), 1e-30)
        gap = float(np.linalg.norm(results[name] - value)) / norm
        if not gap < TOLERANCE:
            return f"{name} differ from printed's by {gap:.1%}"
    return ""
