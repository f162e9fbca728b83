"""What `torch.save` writes, in its three forms: read without PyTorch.

Since 1.6 a zip archive: a pickle, and a member for each storage. From 2017 on pickles
one after the other, and then the storages. Before that a tar archive, in which tensors
have a table of their own; the first files of torchvision are such.
"""

import dataclasses
import functools
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from vt_flax.weights.pickles import dtype_of, load
from vt_flax.weights.stored import Storage, Stored, Tensor, Unreadable

# The first pickle of the second form.
MAGIC = 0x1950A86A20F9469CFC6C
CUT_OFF = "it is damaged or cut off"

Bytes = Callable[[Storage], bytes]


@dataclasses.dataclass(frozen=True)
class Saved:
    """What was saved.

    Attributes:
      value: dictionaries, lists and so on, with a `Tensor` for each tensor.
      array: returns the array in the file of which a storage is a piece.
    """

    value: Any
    array: Callable[[Storage], np.ndarray]

    def stored(self, tensor: Tensor) -> Stored:
        """Returns where the numbers of a tensor are."""
        storage = tensor.storage
        if storage is None:
            raise Unreadable("it has a tensor without numbers")

        def read() -> np.ndarray:
            dtype = np.dtype(storage.dtype)
            if not all(tensor.shape):
                return np.zeros(tensor.shape, dtype)
            return np.lib.stride_tricks.as_strided(
                self.array(storage)[storage.offset + tensor.offset :],
                tensor.shape,
                [dtype.itemsize * stride for stride in tensor.strides],
                writeable=False,
            )

        return Stored(tensor.shape, storage.dtype, read)


def read_saved(stream: BinaryIO) -> Saved:
    """Returns what `torch.save` wrote; the stream must stay open as long as it is used.

    Raises:
      Unreadable: for anything else.
    """
    start = stream.read(512)
    stream.seek(0)
    if start.startswith(b"PK\x03\x04"):
        read = _read_zip
    elif start[257:262] == b"ustar":
        read = _read_tar
    elif start.startswith(b"\x80"):
        read = _read_pickles
    else:
        raise Unreadable("it is neither a .safetensors file nor one of PyTorch's")
    try:
        return read(stream)
    except (OSError, Unreadable):
        raise
    # Damaged archives raise more than their own errors, and values of other types and
    # sizes than should be there do too.
    except Exception as error:
        raise Unreadable(CUT_OFF) from error


# ------------------------------------------------------------------------ since 1.6


def _read_zip(stream: BinaryIO) -> Saved:
    archive = zipfile.ZipFile(stream)
    names = set(archive.namelist())
    tops = [n.removesuffix("/data.pkl") for n in names if n.endswith("/data.pkl")]
    tops = [top for top in tops if "/" not in top]
    if len(tops) != 1:
        raise Unreadable("it is a zip archive, but not of torch.save")
    top = tops[0]

    def member(name: str) -> bytes:
        if f"{top}/{name}" not in names:
            raise Unreadable(f"{CUT_OFF} ({name!r} is not in it)")
        # What PyTorch does not compress cannot grow as it is read.
        if archive.getinfo(f"{top}/{name}").compress_type != zipfile.ZIP_STORED:
            raise Unreadable("it is a compressed archive, which torch.save never makes")
        try:
            return archive.read(f"{top}/{name}")
        except OSError:
            raise
        # As in opening it. The sum of the member is checked, too.
        except Exception as error:
            raise Unreadable(f"{CUT_OFF} ({name!r} cannot be read)") from error

    if f"{top}/byteorder" in names:
        _check_order(member("byteorder") == b"little")
    value = load(io.BytesIO(member("data.pkl")), _storage)
    return _saved(value, lambda storage: member(f"data/{storage.key}"))


# ---------------------------------------------------------------------- 2017 to 1.5


def _read_pickles(stream: BinaryIO) -> Saved:
    if load(stream, _storage) != MAGIC:
        raise Unreadable("it is a pickle, but not of torch.save")
    load(stream, _storage)  # the version of the form, always 1001
    system = load(stream, _storage)
    _check_order(isinstance(system, dict) and system.get("little_endian") is True)
    wholes: dict[Any, Storage] = {}

    def persistent(reference: Any) -> Storage:
        whole = _storage(reference)
        wholes[whole.key] = whole
        view = reference[5] if len(reference) > 5 else None
        if view is None:
            return whole
        _, offset, size = view
        if min(offset, size) < 0 or offset + size > whole.size:
            raise Unreadable("it has a storage that reaches beyond its numbers")
        return dataclasses.replace(whole, size=size, offset=offset)

    value = load(stream, persistent)
    places = {}
    for key in load(stream, _storage):
        if key not in wholes:
            raise Unreadable(f"{CUT_OFF} (storage {key!r:.40} has no type)")
        places[key] = _pass_array(stream, wholes[key])
    return _saved(value, functools.partial(_bytes_at, stream, places))


# ----------------------------------------------------------------------- until 2017


def _read_tar(stream: BinaryIO) -> Saved:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        starts = {member.name: member.offset_data for member in archive}
    if not {"storages", "tensors", "pickle"} <= set(starts):
        raise Unreadable("it is a tar archive, but not a whole one of torch.save")

    storages: dict[Any, Storage] = {}
    places: dict[Any, int] = {}
    stream.seek(starts["storages"])
    for _ in range(_count(load(stream, _nothing))):
        key, _, kind = load(stream, _nothing)
        size = struct.unpack("<q", _take(stream, 8))[0]
        stream.seek(-8, io.SEEK_CUR)
        storages[key] = Storage(key, dtype_of(kind), size)
        places[key] = _pass_array(stream, storages[key])
    for key, whole, offset, size in load(stream, _nothing):
        if min(offset, size) < 0 or offset + size > storages[whole].size:
            raise Unreadable("it has a storage that reaches beyond its numbers")
        storages[key] = dataclasses.replace(storages[whole], size=size, offset=offset)

    tensors: dict[Any, Tensor] = {}
    stream.seek(starts["tensors"])
    for _ in range(_count(load(stream, _nothing))):
        key, storage, _ = load(stream, _nothing)
        dims = struct.unpack("<i4x", _take(stream, 8))[0]
        layout = struct.unpack(f"<{2 * dims + 1}q", _take(stream, 8 * (2 * dims + 1)))
        tensors[key] = Tensor()
        tensors[key].fill(storages[storage], layout[-1], layout[:dims], layout[dims:-1])

    stream.seek(starts["pickle"])
    value = load(stream, lambda reference: tensors[int(reference)])
    return _saved(value, functools.partial(_bytes_at, stream, places))


def _count(value: Any) -> int:
    if type(value) is not int:
        raise Unreadable(CUT_OFF)
    return value


def _nothing(reference: Any) -> Any:
    raise Unreadable("its pickle refers to something before there is anything")


# --------------------------------------------------------------------------- shared


def _storage(reference: Any) -> Storage:
    """Returns what a pickle of the later forms refers to."""
    if type(reference) is not tuple or reference[0] != "storage":
        raise Unreadable(
            "it holds more than weights; have PyTorch save the state dict alone, by "
            "torch.save(network.state_dict(), FILE)"
        )
    _, kind, key, _, size = reference[:5]
    if type(key) not in (str, int) or type(size) is not int or size < 0:
        raise Unreadable(f"{CUT_OFF} (a storage has no size)")
    return Storage(key, dtype_of(kind), size)


def _check_order(little: bool) -> None:
    if not little:
        raise Unreadable("its numbers are big-endian: have PyTorch save it elsewhere")


def _take(stream: BinaryIO, count: int) -> bytes:
    place = stream.tell()
    if place + count > stream.seek(0, io.SEEK_END):
        raise Unreadable(f"{CUT_OFF} (it ends within its numbers)")
    stream.seek(place)
    return stream.read(count)


def _pass_array(stream: BinaryIO, storage: Storage) -> int:
    """Returns where the numbers of a storage begin, and moves behind them."""
    size = struct.unpack("<q", _take(stream, 8))[0]
    if size != storage.size or size < 0:
        raise Unreadable(f"{CUT_OFF} (an array has {size} numbers for {storage.size})")
    place = stream.tell()
    end = place + size * np.dtype(storage.dtype).itemsize
    if end > stream.seek(0, io.SEEK_END):
        raise Unreadable(f"{CUT_OFF} (it ends within its numbers)")
    stream.seek(end)
    return place


def _bytes_at(stream: BinaryIO, places: dict[Any, int], storage: Storage) -> bytes:
    if storage.key not in places:
        raise Unreadable(f"{CUT_OFF} (an array is not in it)")
    stream.seek(places[storage.key])
    # Of a piece, what comes before it too, and nothing behind it.
    count = storage.offset + storage.size
    return _take(stream, count * np.dtype(storage.dtype).itemsize)


def _saved(value: Any, data: Bytes) -> Saved:
    # Tensors of one storage follow each other: no more than one need be kept.
    @functools.lru_cache(maxsize=1)
    def array(storage: Storage) -> np.ndarray:
        dtype = np.dtype(storage.dtype)
        found = data(storage)
        if len(found) < (storage.offset + storage.size) * dtype.itemsize:
            raise Unreadable(f"{CUT_OFF} (an array has too few numbers)")
        return np.frombuffer(found, dtype, storage.offset + storage.size)

    return Saved(value, array)
