"""Whether a network's kernels compute on a device what they are to compute."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from vt_flax.errors import UserError, first_line
from vt_flax.fused.platforms import SWITCH, kernels_allowed, without_kernels

# Those that kernels take at a time, at most.
EXAMPLES = 128
# Of the norm of logits or gradients. Rounding to bfloat16, in another order, makes some
# hundredths of a fresh network's gradients; a kernel that is wrong makes others.
TOLERANCE = 0.25
ADVICE = f"set {SWITCH}=0 in the environment, and report it"


def check_network(
    model: nn.Module, size: tuple[int, int], mesh: Mesh, examples: int
) -> None:
    """Compares kernels with products on this process's first device, if it is a TPU.

    A kernel is a program of our own for chips of many kinds; what a run learns must not
    depend on which.

    Args:
      model: any network.
      size: height and width of its input.
      mesh: the devices.
      examples: that a device computes at a time.

    Raises:
      UserError: if the kernels do not run, or give something else.
    """
    device = min(mesh.local_devices, key=lambda device: device.id)
    if device.platform == "tpu" and kernels_allowed():
        compare(model, size, device, min(examples, EXAMPLES))


def compare(
    model: nn.Module, size: tuple[int, int], device: jax.Device, examples: int
) -> None:
    """Compares logits and gradients as kernels and as products compute them.

    On noise, for a fresh network in training; raises as `check_network` does. A network
    without kernels is not run.
    """
    images = np.random.default_rng(0).normal(size=(examples, *size, 3))
    images = jax.device_put(images.astype(np.float32), device)
    with without_kernels():
        variables = jax.jit(lambda x: model.init(jax.random.key(0), x))(images[:1])
    keys = {"dropout": jax.random.key(1)}

    def traced() -> jax.stages.Traced:
        def total(params: dict) -> tuple[jax.Array, jax.Array]:
            logits, _ = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs=keys,
            )
            return jnp.sum(jnp.square(logits)), logits

        gradients = jax.jit(jax.grad(total, has_aux=True))
        return gradients.trace(variables["params"])

    def run(program: jax.stages.Traced) -> tuple[jax.Array, jax.Array]:
        gradients, logits = program.lower().compile()(variables["params"])
        flat = [leaf.ravel() for leaf in jax.tree.leaves(gradients)]
        return logits, jnp.concatenate(flat)

    try:
        program = traced()
        if "pallas_call" not in str(program.jaxpr):
            return
        found = jax.device_get(run(program))
    except Exception as error:
        raise UserError(
            f"{device.device_kind} does not run the kernels: "
            f"{first_line(error)[:200]}: {ADVICE}"
        ) from error
    with without_kernels():
        expected = run(traced())
    names = ("logits", "gradients")
    for name, ours, value in zip(names, found, expected, strict=True):
        value = np.asarray(value, np.float32)
        gap = np.linalg.norm(ours - value) / max(np.linalg.norm(value), 1e-30)
        if not gap < TOLERANCE:  # nor if it is not a number
            raise UserError(
                f"on {device.device_kind} the kernels give other {name} than products, "
                f"by {gap:.1%}: {ADVICE}"
            )
