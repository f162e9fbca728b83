"""The training steps that JAX compiles, by name: ours, and the plain ones beside it."""

from vt_flax.analysis.references.flax_resnet import FlaxResNetStep
from vt_flax.plan.step import MeshStep, Step

OURS = "ours"
STEPS: dict[str, type[MeshStep]] = {OURS: Step, "flax_resnet": FlaxResNetStep}
