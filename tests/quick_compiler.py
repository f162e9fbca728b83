"""What has XLA compile quickly for CPUs: tests compile far longer than they run."""

import jax

# A third of the time is spared without the emitters, which are always there from
# JAX 0.11.1 on.
FEW_EMITTERS = (
    {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11, 1) else {}
)
