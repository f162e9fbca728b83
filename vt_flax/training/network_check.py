"""Whether a network's kernels compute on a device what they are to compute."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from vt_flax.errors import UserError, first_line

EXAMPLES = 8
# Of the norm of logits or gradients. Rounding to bfloat16, in another order, makes some
# hundredths of a fresh network's gradients; a kernel that is wrong makes others.
TOLERANCE = 0.25
ADVICE = "set model.formulation=printed, and report it"


def check_network(model: nn.Module, size: tuple[int, int], mesh: Mesh) -> None:
    """Compares the formulations on this process's first device, if it runs kernels.

    A kernel is a program of our own for chips of many kinds; what a run learns must not
    depend on which.

    Args:
      model: any network.
      size: height and width of its input.
      mesh: the devices.

    Raises:
      UserError: if the kernels do not run, or give something else.
    """
    device = min(mesh.local_devices, key=lambda device: device.id)
    if device.platform == "tpu" and getattr(model, "formulation", "") == "fused":
        compare(model, size, device)


def compare(model: nn.Module, size: tuple[int, int], device: jax.Device) -> None:
    """Compares logits and gradients of the fused and the printed formulation.

    On noise, for a fresh network in training; raises as `check_network` does.
    """
    images = np.random.default_rng(0).normal(size=(EXAMPLES, *size, 3))
    images = jax.device_put(images.astype(np.float32), device)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x))(images[:1])
    keys = {"dropout": jax.random.key(1)}

    def run(formulation: str) -> tuple[jax.Array, jax.Array]:
        network = model.clone(formulation=formulation)

        def total(params: dict) -> tuple[jax.Array, jax.Array]:
            logits, _ = network.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs=keys,
            )
            return jnp.sum(jnp.square(logits)), logits

        gradients, logits = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
        flat = [leaf.ravel() for leaf in jax.tree.leaves(gradients)]
        return logits, jnp.concatenate(flat)

    try:
        found = jax.device_get(run("fused"))
    except Exception as error:
        raise UserError(
            f"model.formulation: {device.device_kind} does not run the kernels: "
            f"{first_line(error)[:200]}: {ADVICE}"
        ) from error
    names = ("logits", "gradients")
    for name, ours, value in zip(names, found, run("printed"), strict=True):
        value = np.asarray(value, np.float32)
        gap = np.linalg.norm(ours - value) / max(np.linalg.norm(value), 1e-30)
        if not gap < TOLERANCE:  # nor if it is not a number
            raise UserError(
                f"model.formulation: on {device.device_kind} the kernels give other "
                f"{name} than the printed form, by {gap:.1%}: {ADVICE}"
            )
