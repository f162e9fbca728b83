"""Arrays in a file of weights: safetensors, or what `torch.save` writes."""

import collections
import dataclasses
import hashlib
import pathlib
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from vt_flax.errors import UserError, first_line

# Types of numbers that are read. Importing ml_dtypes is what makes NumPy, and so
# safetensors, know the last of them.
FLOATS = ("float64", "float32", "float16", np.dtype(ml_dtypes.bfloat16).name)

_SAFETENSORS_DTYPES = dict(zip(("F64", "F32", "F16", "BF16"), FLOATS, strict=True))

SAVE_ALONE = (
    "in PyTorch, save the weights alone: torch.save(model.state_dict(), FILE), or as "
    "safetensors"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in a file.

    Attributes:
      section: names of the nested dictionaries that hold it, joined by dots.
      shape: its shape.
      dtype: name of the type of its numbers.
      read: returns its numbers.
    """

    section: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def read_arrays(file: pathlib.Path) -> dict[str, Array]:
    """Returns all arrays of a `.safetensors` file or of one that `torch.save` wrote.

    The format is known by the file's content, not its name. Only the latter needs
    PyTorch, whose `torch.load(weights_only=True)` runs nothing that is in the file.

    Returns:
      Arrays by name: the key, after the names of the dictionaries that it is nested in.

    Raises:
      UserError: if the file is missing, damaged or of another kind, or holds objects
        other than weights; or if PyTorch is needed and not installed.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
        if start[8:] == b"{":
            return _read_safetensors(file)
        if not start.startswith((b"PK", b"\x80")):
            raise UserError(
                f"{file} is neither a .safetensors file nor one of torch.save (perhaps "
                f"a web page, or a Git LFS pointer): {SAVE_ALONE}"
            )
        arrays: dict[str, Array] = {}
        _collect(_torch_load(file), "", arrays)
        return arrays
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from error
    # Damaged files lead to errors of all kinds in the libraries that read them.
    except Exception as error:
        raise UserError(
            f"{file} is damaged or no file of weights ({first_line(error)[:200]}): get "
            f"it again, or {SAVE_ALONE}"
        ) from error


def _read_safetensors(file: pathlib.Path) -> dict[str, Array]:
    opened = safetensors.safe_open(file, framework="numpy")
    arrays = {}
    for name in opened.keys():  # noqa: SIM118, it is no mapping
        part = opened.get_slice(name)
        kind = part.get_dtype()
        arrays[name] = Array(
            "",
            tuple(part.get_shape()),
            _SAFETENSORS_DTYPES.get(kind, kind),
            lambda name=name: opened.get_tensor(name),
        )
    return arrays


class _Ignored:
    """Stands for an object that a trainer saved beside the weights."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any):
        pass


class _IgnoredDict:
    """Stands for a dictionary of another kind; PyTorch fills none but its own."""

    def __new__(cls, *args: Any) -> collections.OrderedDict:
        return collections.OrderedDict()


# What trainers save beside the weights: arguments, metrics, paths, optimizers.
_BESIDE_WEIGHTS = (
    *("argparse.", "collections.", "datetime.", "numpy.", "pathlib.", "typing."),
    *("torch.optim.", "torch.torch_version.", "fvcore.", "lightning."),
    *("lightning_fabric.", "mmengine.", "omegaconf.", "pytorch_lightning.", "yacs."),
)
# Types that those refer to, and the function by which they refer to methods.
_BUILTINS = (
    *("bool", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int"),
    *("list", "object", "range", "slice", "str", "tuple"),
)


def _torch_load(file: pathlib.Path) -> Any:
    """Loads a file by PyTorch; what stands beside the weights is left out."""
    try:
        import torch
        from torch.serialization import safe_globals
    except ImportError as error:
        raise UserError(
            f"{file} is read by PyTorch, which is not installed or too old: pip "
            'install "vt_flax[torch]", or get the weights as .safetensors, which needs '
            "no PyTorch"
        ) from error
    # Stand-ins by the names of what they stand for, which is neither imported nor
    # called. PyTorch names what it does not know one by one.
    stand_ins: dict[str, type] = {}
    while True:
        known = [(kind, name) for name, kind in stand_ins.items()]
        try:
            with safe_globals(known), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            match = re.search(r"GLOBAL (\S+)", str(error))
            if not match:
                raise
            name = match[1] if "." in match[1] else f"builtins.{match[1]}"
            usual = name.startswith(_BESIDE_WEIGHTS) or (
                name.removeprefix("builtins.") in _BUILTINS
            )
            if not usual or name in stand_ins:
                raise UserError(
                    f"{file} holds a Python object, {name[:80]!r}, beside weights or "
                    f"instead of them; nothing of it was run: {SAVE_ALONE}"
                ) from error
            is_dict = name.lower().endswith(("dict", "cfgnode"))
            stand_ins[name] = _IgnoredDict if is_dict else _Ignored


def _collect(value: Any, section: str, arrays: dict[str, Array]) -> None:
    """Adds the tensors in nested dictionaries and lists to `arrays`."""
    import torch

    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        name = f"{section}.{key}" if section else str(key)
        if isinstance(item, torch.Tensor):
            arrays[name] = Array(
                section,
                tuple(item.shape),
                str(item.dtype).removeprefix("torch."),
                lambda item=item: item.detach().float().numpy(),
            )
        else:
            _collect(item, name, arrays)


def check_sum(file: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, and compares it with that in the file's name.

    The names of PyTorch's and timm's files end in its first digits:
    resnet50-0676ba61.pth.

    Raises:
      UserError: if the two differ.
    """
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", file.name)
    # A number is likelier a date.
    if match and not match[1].isdecimal() and not found.startswith(match[1]):
        raise UserError(
            f"{file} is damaged: its SHA-256 is {found[:16]}..., by its name "
            f"{match[1]}...; get it again (or rename it, if you wrote it anew)"
        )
    return found
