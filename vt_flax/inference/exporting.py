"""Trained networks as programs in files: for JAX, or a SavedModel for TensorFlow."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import jaxlib
from jax import export

from vt_flax.data.host import tensorflow
from vt_flax.errors import UserError
from vt_flax.experimental import tensorflow_bridge
from vt_flax.inference import loader
from vt_flax.inference.predictor import Predictor
from vt_flax.inference.program import Program, Size, make_program
from vt_flax.version import __version__

# Version of metadata.json, and of the file that holds it.
FORMAT = 1
METADATA = "metadata.json"


def export_network(
    predictor: Predictor,
    out: pathlib.Path,
    *,
    kind: str,
    platforms: Sequence[str],
    size: Size = None,
    logits: bool = False,
) -> dict[str, Any]:
    """Writes a trained network as a program that runs without this package.

    An existing `out` is replaced once the new one is whole.

    Args:
      predictor: the network.
      out: the file, or the folder of a SavedModel.
      kind: `stablehlo` or `savedmodel`.
      platforms: platforms that can run the program, as JAX names them.
      size: see `make_program`.
      logits: see `make_program`.

    Returns:
      The metadata, as in the file.

    Raises:
      UserError: if there is no such program of the network.
      OSError: if it cannot be written.
    """
    program = make_program(predictor, size, logits=logits)
    metadata = {
        **_metadata(predictor, program),
        "kind": kind,
        "platforms": list(platforms),
    }
    # Where the folder lies: `.` has no name of its own, and a link stays a link.
    out = out.resolve() if out.is_dir() else out
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if kind == "savedmodel":
            _write_saved_model(partial, program, metadata)
            if out.is_dir():
                shutil.rmtree(out)
        else:
            _write_stablehlo(partial, program, metadata)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if partial.is_file():
            partial.unlink()
    return metadata


def _metadata(predictor: Predictor, program: Program) -> dict[str, Any]:
    config = predictor.task.config
    keys = ("image_size", "eval_resize", "mean", "std")
    return {
        "format": FORMAT,
        "vt_flax": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "checkpoint": predictor.title,
        "step": predictor.step,
        "weights": "ema" if predictor.averaged else "raw",
        "model": config.model.to_dict(),
        "class_names": list(predictor.class_names),
        "preprocessing": {key: config.data[key] for key in keys},
        "segmentation": config.segmentation.to_dict() if predictor.segments else None,
        "inputs": [dataclasses.asdict(program.images)],
        "outputs": [dataclasses.asdict(array) for array in program.outputs],
    }


def _write_stablehlo(
    out: pathlib.Path, program: Program, metadata: dict[str, Any]
) -> None:
    """Writes a ZIP file of a serialized `jax.export` program and its metadata."""
    scope = export.SymbolicScope(program.constraints)
    shape = export.symbolic_shape(program.images.symbols, scope=scope)
    images = jax.ShapeDtypeStruct(shape, program.images.dtype)
    # Weights that are closed over become the program's own.
    function = jax.jit(functools.partial(program.function, program.variables))
    exported = export.export(function, platforms=metadata["platforms"])(images)
    # With the versions of JAX, this decides which JAX can read the program.
    metadata["calling_convention_version"] = exported.calling_convention_version
    parts = {
        "program.stablehlo": bytes(exported.serialize()),
        METADATA: json.dumps(metadata, indent=2) + "\n",
        "load.py": pathlib.Path(loader.__file__).read_text(),
    }
    with zipfile.ZipFile(out, "w") as file:
        for name, content in parts.items():
            # Without the time, so that the same network makes the same file.
            file.writestr(zipfile.ZipInfo(name), content)


def _write_saved_model(
    out: pathlib.Path, program: Program, metadata: dict[str, Any]
) -> None:
    """Writes a TensorFlow SavedModel, a folder, and `metadata.json` within.

    Its signature `serving_default` takes and returns arrays by name.

    Raises:
      UserError: if it is for CPUs and the installed TensorFlow cannot run it.
    """
    tf, bridge = tensorflow(), tensorflow_bridge()
    function = bridge.convert(
        program.function,
        polymorphic_shapes=[None, program.images.symbols],
        polymorphic_constraints=program.constraints,
        with_gradient=False,
        native_serialization_platforms=tuple(metadata["platforms"]),
    )
    shape = [None if isinstance(side, str) else side for side in program.images.shape]
    spec = tf.TensorSpec(shape, program.images.dtype, program.images.name)
    module = tf.Module()
    # As variables they are saved once; the program is saved for every signature.
    module.weights = jax.tree.map(lambda x: tf.Variable(x, False), program.variables)
    module.serve = tf.function(
        lambda images: function(module.weights, images),
        input_signature=[spec],
        autograph=False,
    )
    signatures = {"serving_default": module.serve.get_concrete_function()}
    tf.saved_model.save(module, str(out), signatures=signatures)
    extra = out / "assets.extra"  # which TensorFlow leaves to users
    extra.mkdir()
    (extra / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")
    if "cpu" not in metadata["platforms"]:
        return
    # TensorFlow looks at the program when it runs, and JAX writes programs for readers
    # that are at most weeks older than itself.
    images = tf.ones([side or 1 for side in spec.shape], spec.dtype)
    try:
        with tf.device("CPU"):
            tf.saved_model.load(str(out)).signatures["serving_default"](images=images)
    except tf.errors.OpError as error:
        raise UserError(
            f"TensorFlow {tf.__version__} cannot run what JAX {jax.__version__} writes "
            "for it: install a newer TensorFlow, or an older JAX"
        ) from error
