"""Programs that compile for TPUs, in other processes."""

import os
import subprocess
import sys

import pytest

from vt_flax.plan.tpu_compiler import ENVIRONMENT, has_tpu_compiler, old_compiler

needs_tpu_compiler = pytest.mark.skipif(
    not has_tpu_compiler(), reason='needs libtpu: pip install "jax[tpu]"'
)
# One host of each kind of chip, skipped where the installed compiler is too old.
CHIPS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(old), reason=old))
    for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
    for old in [old_compiler(name)]
]
EACH = """
import sys
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.tpu_compiler import tpu_devices
for topology in sys.argv[1:]:
    print(topology, compile_for(make_mesh(tpu_devices(topology))), flush=True)
"""


def run_program(program, *topologies):
    """Runs a program with names of topologies as arguments; returns its output."""
    done = subprocess.run(
        [sys.executable, "-c", program, *topologies],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout.strip()


def run_for_chips(program):
    """Runs a program for all CHIPS that are not skipped, in one process.

    Args:
      program: defines `compile_for`, which takes a mesh of a topology's devices.

    Returns:
      The result of that function as text, by topology.
    """
    names = [chip.values[0] for chip in CHIPS if not chip.marks[0].args[0]]
    lines = run_program(program + EACH, *names).splitlines()
    return dict(line.split(" ", 1) for line in lines)
