"""Trained networks as programs in files: for JAX, or a SavedModel for TensorFlow."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jaxlib
from jax import export

from vt_flax.data.host import tensorflow
from vt_flax.errors import UserError
from vt_flax.experimental import tensorflow_bridge
from vt_flax.inference import loader
from vt_flax.inference.predictor import Predictor, load
from vt_flax.inference.program import Program, Size, make_program
from vt_flax.version import __version__

# Of metadata.json, and of the file that it is in.
FORMAT = 1
PROGRAM, METADATA, LOADER = "program.stablehlo", "metadata.json", "load.py"
# Where TensorFlow leaves a SavedModel's folder to whoever saves it.
EXTRA = "assets.extra"


@dataclasses.dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
      metadata: as in the file.
      size: in bytes.
    """

    metadata: dict[str, Any]
    size: int


def loading_lines() -> str:
    """Returns the Python that loads what `export_stablehlo` writes."""
    return pathlib.Path(loader.__file__).read_text()


def export_network(
    workdir: pathlib.Path,
    out: pathlib.Path,
    overrides: Sequence[str] = (),
    *,
    kind: str,
    platforms: Sequence[str],
    step: int | None = None,
    best: bool = False,
    size: Size = None,
    logits: bool = False,
) -> Export:
    """Writes the network of a workdir as a program that runs without this package.

    Averaged weights are taken where there are any. What is there already is replaced.

    Args:
      workdir: folder of a run.
      out: the file, or the folder of a SavedModel.
      overrides: of the run's configuration.
      kind: of `WRITERS`.
      platforms: what the program is to run on, as JAX names them.
      step: of the checkpoint; None for the newest, or the best.
      best: whether the best checkpoints are meant.
      size: see `make_program`.
      logits: see `make_program`.

    Raises:
      UserError: if there is no such network, or no such program of it.
      OSError: if it cannot be written; what was there is left then.
    """
    predictor = load(workdir, overrides, step=step, best=best)
    if "formulation" in predictor.model.__dataclass_fields__:
        # Pallas's kernels need a known batch size, and JAX does not promise that later
        # versions read programs that contain them.
        predictor.model = predictor.model.clone(formulation="folded")
    program = make_program(predictor, size, logits=logits)
    metadata = {
        **_metadata(predictor, program),
        "kind": kind,
        "platforms": list(platforms),
    }
    return Export(metadata, WRITERS[kind](out, program, metadata))


def _metadata(predictor: Predictor, program: Program) -> dict[str, Any]:
    config = predictor.task.config
    return {
        "format": FORMAT,
        "vt_flax": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "checkpoint": predictor.title,
        "step": predictor.step,
        "weights": "ema" if predictor.averaged else "raw",
        "model": config.model.to_dict(),
        "class_names": list(predictor.task.class_names),
        "preprocessing": program.preprocessing,
        "inputs": [dataclasses.asdict(array) for array in program.inputs],
        "outputs": [dataclasses.asdict(array) for array in program.outputs],
    }


def write_stablehlo(
    out: pathlib.Path, program: Program, metadata: dict[str, Any]
) -> int:
    """Writes a ZIP file of a serialized `jax.export` program and its metadata.

    Returns:
      Its size in bytes.
    """
    scope = export.SymbolicScope(program.constraints)
    specs = [
        jax.ShapeDtypeStruct(
            export.symbolic_shape(array.symbols, scope=scope), array.dtype
        )
        for array in program.inputs
    ]
    # Weights that are closed over become the program's own.
    function = jax.jit(functools.partial(program.function, program.variables))
    exported = export.export(function, platforms=metadata["platforms"])(*specs)
    # These and the version of JAX decide which JAX can read the program.
    metadata["calling_convention_version"] = exported.calling_convention_version
    # The artifact is MLIR bytecode, whose header names its producer; null if that
    # changes.
    header = re.match(
        rb"ML\xefR.StableHLO_v([\d.]+)\0", exported.mlir_module_serialized
    )
    metadata["stablehlo_version"] = header and header[1].decode()
    parts = {
        PROGRAM: bytes(exported.serialize()),
        METADATA: json.dumps(metadata, indent=2) + "\n",
        LOADER: loading_lines(),
    }

    def write(partial: pathlib.Path) -> None:
        with zipfile.ZipFile(partial, "w") as file:
            for name, content in parts.items():
                # Without the time, so that the same network makes the same file.
                file.writestr(zipfile.ZipInfo(name), content)

    return _put(out, write)


def write_saved_model(
    out: pathlib.Path, program: Program, metadata: dict[str, Any]
) -> int:
    """Writes a TensorFlow SavedModel, a folder, and `metadata.json` within.

    Its signature `serving_default` takes and gives arrays by name.

    Returns:
      Its size in bytes.

    Raises:
      UserError: if the TensorFlow that is here cannot run it, if it is for CPUs.
    """
    tf, bridge = tensorflow(), tensorflow_bridge()
    function = bridge.convert(
        program.function,
        polymorphic_shapes=[None, *(array.symbols for array in program.inputs)],
        polymorphic_constraints=program.constraints,
        with_gradient=False,
        native_serialization_platforms=tuple(metadata["platforms"]),
    )
    specs = [
        tf.TensorSpec(
            [None if isinstance(side, str) else side for side in array.shape],
            array.dtype,
            array.name,
        )
        for array in program.inputs
    ]
    module = tf.Module()
    # As variables they are saved once; the program is saved for every signature.
    module.weights = jax.tree.map(lambda x: tf.Variable(x, False), program.variables)
    module.serve = tf.function(
        lambda *arrays: function(module.weights, *arrays),
        input_signature=specs,
        autograph=False,
    )

    def write(partial: pathlib.Path) -> None:
        signatures = {"serving_default": module.serve.get_concrete_function()}
        tf.saved_model.save(module, str(partial), signatures=signatures)
        (partial / EXTRA).mkdir()
        text = json.dumps(metadata, indent=2) + "\n"
        (partial / EXTRA / METADATA).write_text(text)
        if "cpu" in metadata["platforms"]:
            _try_saved_model(partial, specs)

    return _put(out, write)


def _try_saved_model(folder: pathlib.Path, specs: Sequence[Any]) -> None:
    """Runs a SavedModel once: TensorFlow looks at the program in it only then.

    JAX writes programs for readers that are at most weeks older than itself.
    """
    tf = tensorflow()
    one = {
        spec.name: tf.ones(
            [1 if side is None else side for side in spec.shape], spec.dtype
        )
        for spec in specs
    }
    try:
        with tf.device("CPU"):
            tf.saved_model.load(str(folder)).signatures["serving_default"](**one)
    except tf.errors.OpError as error:
        raise UserError(
            f"TensorFlow {tf.__version__} cannot run what JAX {jax.__version__} writes "
            "for it: install a newer TensorFlow, or an older JAX"
        ) from error


WRITERS = {"stablehlo": write_stablehlo, "savedmodel": write_saved_model}


def _put(out: pathlib.Path, write: Callable[[pathlib.Path], None]) -> int:
    """Writes a file or a folder beside its place, then puts it there; gives its size.

    Raises:
      OSError: if it cannot be written; what was there is left then.
    """
    if out.is_dir():
        # The name that a folder has where it lies: `.` has none of its own, and a link
        # to it is to stay one.
        out = out.resolve()
    partial, old = (
        out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("new", "old")
    )
    try:
        write(partial)
        files = [partial, *partial.rglob("*")]
        size = sum(file.stat().st_size for file in files if file.is_file())
        if out.is_dir():
            # No folder takes the place of another in one step.
            out.rename(old)
            try:
                partial.rename(out)
            except BaseException:
                old.rename(out)
                raise
            shutil.rmtree(old)
        else:
            partial.replace(out)
        return size
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
