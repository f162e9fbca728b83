"""One image, one set of pixels: training, evaluation and predict read files equally."""

import io
import struct

import numpy as np
from image_files import TURNS, chunk, encode, png, tiff_of_12_bits, with_orientation
from PIL import Image, ImageOps, features

from vt_flax.data.batches import eval_batches, train_batches
from vt_flax.data.center_crop import center_crop
from vt_flax.data.sources import open_source
from vt_flax.inference.reading import read_picture
from vt_flax.training.config import default_config

HEIGHT, WIDTH = 24, 32
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
RGB, GRAY, ALPHA = NOISE[..., :3], NOISE[..., 0], NOISE[..., 3]
# Nearly all of JPEG's error is in the encoder; here only decoders are compared.
SMOOTH = np.stack(np.meshgrid(*(range(0, 8 * n, 8) for n in (WIDTH, HEIGHT))), -1)
SMOOTH = np.dstack([SMOOTH, SMOOTH[..., :1] // 2 + 60]).astype(np.uint8)


def in_rgb(gray):
    return np.repeat(np.asarray(gray, np.uint8)[..., None], 3, -1)


def by_pillow(encoded):
    """What Pillow makes of a file of 8 bits or fewer, as most loaders use it."""
    image = Image.open(io.BytesIO(encoded))
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def pngs():
    """PNGs of every color type and depth that there is, and chunks of all kinds."""
    for depth in (1, 2, 4, 8, 16):
        levels = RNG.integers(0, 1 << depth, (HEIGHT, WIDTH, 1))
        # libpng drops the lower byte, and spreads fewer bits to the whole range.
        eight = levels >> 8 if depth == 16 else levels * 255 // ((1 << depth) - 1)
        eight = in_rgb(eight[..., 0])
        key = chunk(b"tRNS", struct.pack(">H", levels[0, 0, 0]))
        yield f"gray{depth}", png(levels, depth, 0), eight
        yield f"gray{depth}_key", png(levels, depth, 0, key), eight
        yield f"gray{depth}_interlaced", png(levels, depth, 0, interlaced=True), eight
        if depth <= 8:
            palette = RNG.integers(0, 256, (1 << depth, 3), np.uint8)
            found = palette[levels[..., 0]]
            colors = chunk(b"PLTE", palette.tobytes())
            yield f"palette{depth}", png(levels, depth, 3, colors), found
            colors += chunk(b"tRNS", bytes([0, 120]))
            yield f"palette{depth}_alpha", png(levels, depth, 3, colors), found
    for depth in (8, 16):
        levels = RNG.integers(0, 1 << depth, (HEIGHT, WIDTH, 4))
        eight = (levels >> (depth - 8)).astype(np.uint8)
        key = chunk(b"tRNS", struct.pack(">HHH", *levels[0, 0, :3]))
        yield f"rgb{depth}", png(levels[..., :3], depth, 2), eight[..., :3]
        yield f"rgb{depth}_key", png(levels[..., :3], depth, 2, key), eight[..., :3]
        yield f"rgba{depth}", png(levels, depth, 6), eight[..., :3]
        yield f"la{depth}", png(levels[..., :2], depth, 4), in_rgb(eight[..., 0])
    for name, data in (("gAMA", struct.pack(">I", 100000)), ("sBIT", b"\5\6\5")):
        yield name, png(RGB, 8, 2, chunk(name.encode(), data)), RGB
    of_12_bits = RNG.integers(0, 4096, (HEIGHT, WIDTH, 1))
    bits = chunk(b"sBIT", b"\x0c")
    # The standard has a writer spread 12 bits over 16: sBIT changes no level.
    yield "sBIT16", png(of_12_bits << 4, 16, 0, bits), in_rgb(of_12_bits[..., 0] >> 4)
    frames = {"save_all": True, "append_images": [Image.fromarray(SMOOTH)]}
    yield "animated", encode(RGB, "PNG", **frames), RGB
    yield "trailing", encode(RGB, "PNG") + b"more", RGB
    for value, turn in TURNS.items():
        yield f"exif{value}", encode(RGB, "PNG", **with_orientation(value)), turn(RGB)
    exif = chunk(b"eXIf", with_orientation(6)["exif"].tobytes()[6:])
    yield "exif_after", png(RGB, 8, 2, after=exif), np.rot90(RGB, -1)


def jpegs():
    for name, image, options in (
        ("rgb", SMOOTH, {}),
        ("full_color", RGB, {"subsampling": 0}),
        ("half_color", RGB, {"subsampling": 1}),
        ("progressive", RGB, {"progressive": True}),
        ("gray", GRAY, {}),
        ("not_ycc", RGB, {"keep_rgb": True}),
        ("large_profile", SMOOTH, {"icc_profile": bytes(70000)}),
    ):
        yield name, encode(image, "JPEG", **options)
    cmyk = encode(Image.fromarray(NOISE, "CMYK"), "JPEG")
    yield "cmyk", cmyk
    at = cmyk.index(b"\xff\xee")
    yield "cmyk_without_adobe", cmyk[:at] + cmyk[at + 16 :]
    # Adobe's marker says at its end that inks are stored as YCC and K.
    yield "ycck", cmyk[: at + 15] + b"\2" + cmyk[at + 16 :]
    yield "trailing", encode(SMOOTH, "JPEG") + b"SEFT"
    second = Image.fromarray(RGB)
    yield "mpo", encode(SMOOTH, "MPO", save_all=True, append_images=[second])
    for value in TURNS:
        yield f"exif{value}", encode(SMOOTH, "JPEG", **with_orientation(value))


def others():
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(GRAY.shape)
    for order in "<>":
        tiff = encode(deep.astype(f"{order}u2"), "TIFF")
        yield f"16{order}.tif", tiff, in_rgb(deep // 257)
    of_12_bits = deep >> 4
    expected = in_rgb(of_12_bits.astype(int) * 255 // 4095)
    yield "12.tif", tiff_of_12_bits(of_12_bits), expected
    pgm = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT)
    yield "16.pgm.tif", pgm + deep.astype(">u2").tobytes(), in_rgb(deep // 257)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"):
        image = Image.fromarray(RGB)
        image = Image.fromarray(RGB, "LAB") if mode == "LAB" else image.convert(mode)
        tiff = encode(image, "TIFF")
        yield f"{mode}.tif", tiff, by_pillow(tiff)
    for value, turn in TURNS.items():
        exif = with_orientation(value)
        yield f"exif{value}.tif", encode(RGB, "TIFF", **exif), turn(RGB)
        # One channel, which Pillow maps into memory where it can.
        gray = encode(GRAY, "TIFF", **exif)
        yield f"gray{value}.tif", gray, in_rgb(turn(GRAY))
        lzw = encode(RGB, "TIFF", compression="tiff_lzw", **exif)
        yield f"lzw{value}.tif", lzw, turn(RGB)
        webp = encode(RGB, "WEBP", lossless=True, **exif)
        yield f"exif{value}.webp", webp, turn(RGB)
        if features.check("avif"):
            avif = encode(SMOOTH, "AVIF", **exif)
            yield f"exif{value}.avif.webp", avif, by_pillow(avif)
    for mode in ("1", "P", "RGBA"):
        bmp = encode(Image.fromarray(NOISE).convert(mode), "BMP")
        yield f"{mode}.bmp", bmp, by_pillow(bmp)
    frames = {"save_all": True, "append_images": [Image.fromarray(SMOOTH)]}
    for name, encoded in {
        "a.gif": encode(RGB, "GIF"),
        "animated.gif": encode(RGB, "GIF", **frames),
        "key.gif": encode(Image.fromarray(RGB).quantize(9), "GIF", transparency=2),
        "lossy.webp": encode(SMOOTH, "WEBP"),
        "animated.webp": encode(RGB, "WEBP", **frames),
        "alpha.webp": encode(NOISE, "WEBP", lossless=True, exact=True),
        "jpeg.png": encode(SMOOTH, "JPEG"),
        "png.jpg": encode(RGB, "PNG"),
        "gif.jpeg": encode(RGB, "GIF"),
        "jpeg2000.png": encode(RGB, "JPEG2000"),
    }.items():
        yield name, encoded, by_pillow(encoded)


def all_files():
    found = {f"{name}.png": more for name, *more in pngs()}
    found |= {f"{name}.jpg": [file, by_pillow(file)] for name, file in jpegs()}
    found |= {name: more for name, *more in others()}
    return found


def middle(image):
    """The central square, which the crop is where nothing is resized."""
    top, left = ((side - HEIGHT) // 2 for side in image.shape[:2])
    return image[top : top + HEIGHT, left : left + HEIGHT]


def test_all_read_equal_pixels(tmp_path):
    """Of every format and mode; what is expected comes from NumPy or Pillow."""
    files = all_files()
    assert len(files) > 100
    folder = tmp_path / "class"
    folder.mkdir()
    for name, (encoded, _) in files.items():
        (folder / name).write_bytes(encoded)
    source = open_source(f"folder:{tmp_path}", "all")
    assert len(source) == len(files)
    config = default_config().data
    config.update(image_size=HEIGHT, train_crop="center", workers=2)
    (evaluated,) = eval_batches(source, config, batch=len(files))
    (trained,) = train_batches(
        source, config, seed=0, batch=len(files), first=0, last=1
    )
    # In an epoch every example comes once, wherever.
    in_training = {image.tobytes() for image in trained["image"]}
    wrong = []
    for i, image in enumerate(evaluated["image"]):
        file = source.describe(i)
        _, expected = files[file.rsplit("/")[-1]]
        picture = read_picture(file)
        view = center_crop(picture.pixels, HEIGHT, HEIGHT)
        if not (
            np.array_equal(picture.pixels, expected)
            and np.array_equal(image, middle(expected))
            and np.array_equal(view, image)
            and image.tobytes() in in_training
        ):
            wrong.append(file)
    assert wrong == []
