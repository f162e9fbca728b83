"""The state dict in a file, of whatever kind the file is."""

import contextlib
import hashlib
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors

from vt_flax.errors import UserError, first_line
from vt_flax.weights.pytorch import Saved, read_saved
from vt_flax.weights.stored import Stored, Tensor, Unreadable

# Under which training scripts save the state dict beside other things.
SECTIONS = ("state_dict", "model")
# What `DataParallel` puts before every name.
WRAPPER = "module."

_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}


@contextlib.contextmanager
def open_weights(file: pathlib.Path) -> Iterator[dict[str, Stored]]:
    """Opens a `.safetensors` file or one of PyTorch's; its content tells which.

    Args:
      file: its path.

    Yields:
      Its arrays by name, without `module.` in front. They are read within the context.

    Raises:
      UserError: if there is no such file, or it is damaged, or holds no state dict; so
        does `Stored.read`.
    """
    with contextlib.ExitStack() as stack:
        with _told(file):
            stream = stack.enter_context(file.open("rb"))
            start = stream.read(9)
            if not start:
                raise Unreadable("it is empty")
            stream.seek(0)
            if start[8:] == b"{":
                arrays = _safetensors(stack, file)
            else:
                arrays = _state_dict(read_saved(stream))
            arrays = _unwrapped(arrays)
        yield {name: _reading(file, array) for name, array in arrays.items()}


@contextlib.contextmanager
def _told(file: pathlib.Path) -> Iterator[None]:
    """Makes one line of what is wrong with a file."""
    try:
        yield
    except Unreadable as error:
        raise UserError(f"{file}: {error}") from error
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{file}: it is damaged or cut off ({first_line(error)[:200]})"
        ) from error
    except IsADirectoryError:
        raise UserError(f"{file} is a folder: name the file in it") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from error


def _reading(file: pathlib.Path, array: Stored) -> Stored:
    def read() -> Any:
        with _told(file):
            return array.read()

    return Stored(array.shape, array.dtype, read)


def _safetensors(
    stack: contextlib.ExitStack, file: pathlib.Path
) -> Mapping[str, Stored]:
    opened = stack.enter_context(safetensors.safe_open(file, framework="numpy"))
    arrays = {}
    for name in opened.keys():  # noqa: SIM118, it is no mapping
        part = opened.get_slice(name)
        kind = part.get_dtype()
        arrays[name] = Stored(
            tuple(part.get_shape()),
            _SAFETENSORS_DTYPES.get(kind, kind),
            lambda name=name: opened.get_tensor(name),
        )
    return arrays


def _state_dict(saved: Saved) -> Mapping[str, Stored]:
    value = saved.value
    for section in SECTIONS:
        if isinstance(value, dict) and isinstance(value.get(section), dict):
            value = value[section]
            break
    if not isinstance(value, dict):
        raise Unreadable("it holds no state dict, but something else")
    return {
        str(name): saved.stored(tensor)
        for name, tensor in value.items()
        if isinstance(tensor, Tensor)
    }


def _unwrapped(arrays: Mapping[str, Stored]) -> dict[str, Stored]:
    if not arrays:
        raise Unreadable("it holds no state dict: there is not one array in it")
    found: dict[str, Stored] = {}
    for name, array in arrays.items():
        if not name.isprintable():
            raise Unreadable(f"it calls an array {name[:80]!r}, which is no name")
        if found.setdefault(name.removeprefix(WRAPPER), array) is not array:
            raise Unreadable(f"it holds {name} with and without {WRAPPER}")
    return found


def check_sum(file: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, whose name may begin to say it.

    PyTorch's and timm's files are named so: resnet50-0676ba61.pth.

    Raises:
      UserError: if the name says another one.
    """
    with _told(file), file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", file.name)
    # A number is likelier a date.
    if match and not match[1].isdecimal() and not found.startswith(match[1]):
        raise UserError(
            f"{file} is damaged: its SHA-256 is {found[:16]}..., by its name "
            f"{match[1]}...; get it again (or rename it, if you wrote it anew)"
        )
    return found
