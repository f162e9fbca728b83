"""Writes pickles instruction by instruction, and what `torch.save` once made of them.

What a hostile file does, and what PyTorch 0.1 did, no library writes any more.
"""

import dataclasses
import io
import pickle
import struct
import tarfile
import zipfile
from typing import Any

MAGIC = 0x1950A86A20F9469CFC6C


@dataclasses.dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    function: Any
    arguments: Any
    new: bool = False  # NEWOBJ instead of REDUCE


@dataclasses.dataclass(frozen=True)
class Build:
    value: Any
    state: Any


@dataclasses.dataclass(frozen=True)
class Persistent:
    reference: Any


@dataclasses.dataclass(frozen=True)
class Raw:
    instructions: bytes


def dump(value: Any) -> bytes:
    """Returns a pickle of protocol 2."""
    return b"\x80\x02" + _code(value) + b"."


def _code(value: Any) -> bytes:
    match value:
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            end = b"\x81" if value.new else b"R"
            return _code(value.function) + _code(value.arguments) + end
        case Build():
            return _code(value.value) + _code(value.state) + b"b"
        case Persistent():
            return _code(value.reference) + b"Q"
        case Raw():
            return value.instructions
        case tuple():
            return b"(" + b"".join(map(_code, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_code, value)) + b"e"
        case dict():
            pairs = (_code(k) + _code(v) for k, v in value.items())
            return b"}(" + b"".join(pairs) + b"u"
        case _:  # a constant, of which Python's own pickle is without its ends
            return pickle.dumps(value, 2)[2:-1].removesuffix(b"q\x00")


FLOAT = Global("torch", "FloatStorage")
HOOKS = Call(Global("collections", "OrderedDict"), ())


def tensor(key: str, shape: tuple, size: int, strides: tuple | None = None) -> Call:
    """Returns a float32 tensor at the beginning of storage `key`, as since 2017."""
    storage = Persistent(("storage", FLOAT, key, "cpu", size))
    return rebuilt(storage, shape, strides)


def rebuilt(storage: Any, shape: tuple, strides: tuple | None = None) -> Call:
    function = Global("torch._utils", "_rebuild_tensor_v2")
    strides = contiguous(shape) if strides is None else strides
    return Call(function, (storage, 0, shape, strides, False, HOOKS))


def contiguous(shape: tuple) -> tuple:
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def zip_file(data: bytes, storages: dict[str, bytes], **options: Any) -> bytes:
    """Returns a file of PyTorch 1.6 or newer with `data` as its pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def pickles_file(data: bytes, storages: dict[str, bytes], system: Any = None) -> bytes:
    """Returns a file of PyTorch 0.1.10 to 1.5; storages are of float32."""
    system = system or {"protocol_version": 1001, "little_endian": True}
    parts = [dump(MAGIC), dump(1001), dump(system), data, dump(list(storages))]
    parts += [_counted(content) for content in storages.values()]
    return b"".join(parts)


def _counted(content: bytes) -> bytes:
    return struct.pack("<q", len(content) // 4) + content


def tar_file(data: bytes, arrays: dict[int, Any]) -> bytes:
    """Returns a file of PyTorch 0.1 up to 0.1.9, as torchvision's first.

    Args:
      data: the pickle, which refers to tensors by `Persistent(key)`.
      arrays: float32 arrays of NumPy by key; each one's storage is key + 1.
    """
    storages, tensors = [dump(len(arrays))], [dump(len(arrays))]
    for key, array in arrays.items():
        storages += [dump((key + 1, "cpu", FLOAT)), _counted(array.tobytes("A"))]
        strides = [step // 4 for step in array.strides]
        layout = struct.pack(
            f"<ii{2 * array.ndim + 1}q", array.ndim, 0, *array.shape, *strides, 0
        )
        tensors += [dump((key, key + 1, Global("torch", "FloatTensor"))), layout]
    storages.append(dump([]))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, parts in (
            ("sys_info", [dump({"little_endian": True})]),
            ("pickle", [data]),
            ("tensors", tensors),
            ("storages", storages),
        ):
            content = b"".join(parts)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()
