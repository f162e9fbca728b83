"""The version of the package, read by setup.cfg without importing JAX."""

import functools
import hashlib
import pathlib
from importlib import metadata

__version__ = "0.1.0"


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions that must agree between the processes of a run."""
    sources = hashlib.sha256()
    root = pathlib.Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        # Resolved configurations are compared by themselves.
        if not name.startswith("configs/"):
            sources.update(name.encode() + file.read_bytes())
    code = {"vt_flax": f"{__version__} (sources {sources.hexdigest()[:12]})"}
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow")
    return code | {name: metadata.version(name) for name in libraries}
