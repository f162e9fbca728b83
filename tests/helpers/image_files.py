"""Image files for tests: with EXIF orientation, and PNGs of every kind."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from vt_flax.data.orientation import PNG_START

# How stored pixels become upright, in NumPy's words.
TURNS = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: np.rot90,
}


def encode(image, form="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    output = io.BytesIO()
    image.save(output, form, **options)
    return output.getvalue()


def with_orientation(value, **more):
    exif = Image.Exif()
    exif[0x0112] = value
    return {"exif": exif, **more}


# PNG, written by hand: Pillow writes neither all depths nor all chunks.


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def rows_of(levels, depth):
    """Packs levels (H, W, channels) into the rows of a PNG, without filters."""
    for row in levels.reshape(len(levels), -1):
        if depth == 16:
            packed = row.astype(">u2").tobytes()
        else:
            bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -depth:]
            packed = np.packbits(bits).tobytes()
        yield b"\0" + packed


ADAM7 = [
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
]


def png(levels, depth, color, before=b"", after=b"", interlaced=False):
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    data = b"".join(
        row for x, y, dx, dy in passes for row in rows_of(levels[y::dy, x::dx], depth)
    )
    height, width = levels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    return b"".join(
        [
            PNG_START,
            chunk(b"IHDR", header),
            before,
            chunk(b"IDAT", zlib.compress(data)),
            after,
            chunk(b"IEND", b""),
        ]
    )


def tiff_of_12_bits(levels):
    """Writes levels (H, even W) as a TIFF, two to three bytes; Pillow writes none."""
    first, second = levels[:, ::2], levels[:, 1::2]
    packed = np.stack(
        [first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1
    )
    data = packed.astype(np.uint8).tobytes()
    height, width = levels.shape
    # Width, height, bits, no compression, black is 0, offset of the data, channels,
    # rows, bytes.
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8}
    tags |= {277: 1, 278: height, 279: len(data)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory
