"""What makes tests quicker, which trace and compile far longer than they run."""

import gc

import jax

# Options of XLA for CPUs that make it compile three times as quickly: without fusion
# emitters, which from JAX 0.11.1 on are always there, and one module for all cores. Of
# later versions nothing is left to switch off.
ROUGH = (
    {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    if jax.__version_info__ < (0, 11, 1)
    else {}
)


def spare_the_collector() -> None:
    """Spares the garbage collector work: a fifth of all tracing.

    What has been imported is no garbage to look for; and tracing makes many objects,
    few of which are garbage.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
