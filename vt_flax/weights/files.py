"""Arrays in a file of weights: safetensors, or what `torch.save` writes."""

import collections
import contextlib
import dataclasses
import hashlib
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from vt_flax.errors import UserError, first_line

# Types of numbers that are read. Importing ml_dtypes is what makes NumPy, and so
# safetensors, know the last of them.
FLOATS = ("float64", "float32", "float16", np.dtype(ml_dtypes.bfloat16).name)

_SAFETENSORS_DTYPES = dict(zip(("F64", "F32", "F16", "BF16"), FLOATS, strict=True))
# How torch.save began its files before PyTorch 1.6.
_OLD_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
# A checkpoint nests its state dicts less deeply; a pickle may contain itself.
_DEEPEST = 8

SAVE_ALONE = (
    "in PyTorch, save the weights alone: torch.save(model.state_dict(), FILE), or as "
    "safetensors"
)
# What files start with that are often taken for weights.
_OTHER_FILES = [
    (b"version https://git-lfs", "a Git LFS pointer, no weights: run git lfs pull"),
    (b"<", "a web page, no weights: download the file itself"),
    (b"{", "JSON, such as the index of a sharded checkpoint: name a file of weights"),
]


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
      UserError: if there is no such file, or it is damaged, or of another kind, or
        holds objects other than weights; or if PyTorch is needed and missing.
    """
    with _errors_in(file), file.open("rb") as stream:
        start = stream.read(512)
        stream.seek(0)
        if start[8:9] == b"{":
            return _read_safetensors(file)
        _check_kind(file, start)
        arrays: dict[str, Array] = {}
        _collect(_torch_load(file, stream), "", arrays)
        return arrays


@contextlib.contextmanager
def _errors_in(file: pathlib.Path) -> Iterator[None]:
    """Turns errors of reading a file into one line."""
    try:
        yield
    except UserError:
        raise
    except IsADirectoryError:
        found = sorted(file.glob("*.safetensors")) + sorted(file.glob("*.pt*"))
        example = f", such as {found[0]}" if found else ""
        raise UserError(f"{file} is a folder: name the file in it{example}") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from error
    # Damaged files lead to errors of all kinds in the libraries that read them.
    except Exception as error:
        raise UserError(
            f"{file} is damaged or cut off, so get it again ({first_line(error)[:200]})"
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


def _check_kind(file: pathlib.Path, start: bytes) -> None:
    """Checks that `torch.load` can read a file that starts so.

    Raises:
      UserError: if not.
    """
    if not start:
        raise UserError(f"{file} is empty")
    for beginning, what in _OTHER_FILES:
        if start.lstrip().startswith(beginning):
            raise UserError(f"{file} is {what}")
    if start[257:262] == b"ustar":
        raise UserError(
            f"{file} is a tar archive, as PyTorch wrote before 0.1.10: save it anew by "
            "torch.save(torch.load(FILE, weights_only=False), NEW) if you trust it"
        )
    if start.startswith(b"PK"):
        with zipfile.ZipFile(file) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names:
            raise UserError(
                f"{file} is a TorchScript program: save its weights by "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
            )
        if "data.pkl" not in names:
            raise UserError(
                f"{file} is a zip archive that torch.save did not write: unpack it, or "
                + SAVE_ALONE
            )
    elif not start.startswith(b"\x80"):
        raise UserError(
            f"{file} is neither a .safetensors file nor one of torch.save: {SAVE_ALONE}"
        )
    elif _OLD_MAGIC not in start[:32]:
        raise UserError(
            f"{file} is a pickle that torch.save did not write (Detectron2's .pkl?): "
            "save its arrays as PyTorch tensors, by torch.save or as safetensors"
        )


# ---------------------------------------------------------------------- torch.load


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


def _torch_load(file: pathlib.Path, stream: BinaryIO) -> Any:
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
        stream.seek(0)
        known = [(kind, name) for name, kind in stand_ins.items()]
        try:
            with safe_globals(known), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = _unknown_name(error)
            if not name:
                raise UserError(
                    f"{file} is damaged, or holds more than torch.load(weights_only="
                    "True) reads, or has another pickle_protocol than the default: get "
                    f"it again, or {SAVE_ALONE}"
                ) from error
            known_kind = name.startswith(_BESIDE_WEIGHTS) or (
                name.removeprefix("builtins.") in _BUILTINS
            )
            if not known_kind or name in stand_ins:
                raise UserError(
                    f"{file} holds a Python object, {name[:80]!r}, beside weights or "
                    f"instead of them; nothing of it was run: {SAVE_ALONE}"
                ) from error
            a_dict = name.lower().endswith(("dict", "cfgnode"))
            stand_ins[name] = _IgnoredDict if a_dict else _Ignored


def _unknown_name(error: pickle.UnpicklingError) -> str:
    """Returns the name of the object that PyTorch refuses to load; empty if none."""
    match = re.search(r"GLOBAL (\S+)", str(error))
    if not match:
        return ""
    return match[1] if "." in match[1] else f"builtins.{match[1]}"


def _collect(
    value: Any, section: str, arrays: dict[str, Array], depth: int = 0
) -> None:
    """Adds the tensors in nested dictionaries and lists to `arrays`."""
    import torch

    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or depth > _DEEPEST:
        return
    for key, item in value.items():
        name = f"{section}.{key}" if section else str(key)
        if isinstance(item, torch.Tensor):
            dtype = "meta" if item.is_meta else str(item.dtype).removeprefix("torch.")
            arrays[name] = Array(
                section,
                tuple(item.shape),
                dtype,
                lambda item=item: item.detach().float().to_dense().numpy(),
            )
        else:
            _collect(item, name, arrays, depth + 1)


def check_sum(file: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, whose name may begin to say it.

    PyTorch's and timm's files are named so: resnet50-0676ba61.pth.

    Raises:
      UserError: if the name says another one, or the file cannot be read.
    """
    with _errors_in(file), file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", file.name)
    # A number is likelier a date.
    if match and not match[1].isdecimal() and not found.startswith(match[1]):
        raise UserError(
            f"{file} is damaged: its SHA-256 is {found[:16]}..., by its name "
            f"{match[1]}...; get it again (or rename it, if you wrote it anew)"
        )
    return found
