"""What has XLA compile quickly for CPUs: tests compile far longer than they run."""

import jax

# Neither fusions' emitters, which are always there from JAX 0.11.1 on, nor a module for
# each core: a third of the work.
ROUGH = {"xla_cpu_parallel_codegen_split_count": 1} | (
    {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11, 1) else {}
)
