"""Images as people have them: any mode and size, and what is no image at all."""

import io
import os
import pathlib
import re
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from image_files import encode
from image_files import png as png_of
from PIL import Image

from vt_flax.data import images
from vt_flax.errors import UserError
from vt_flax.inference.reading import each_image, read_picture


def noise(height=12, width=20, channels=3):
    rng = np.random.default_rng(height)
    shape = (height, width, channels) if channels else (height, width)
    return rng.integers(0, 256, shape, np.uint8)


def smooth(height=40, width=56):
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x, 6 * y, 2 * (x + y)], -1).astype(np.uint8)


def jpeg():
    return encode(noise(64, 64), "JPEG")


def png():
    return encode(noise(64, 64), "PNG")


def evaluated(file):
    return images.decode(tf.constant(file.read_bytes())).numpy()


def test_photographs_are_read_as_evaluation_reads_them(real_data):
    files = sorted((real_data / "imagenet_samples").glob("*/*"))[::60]
    assert len(files) == 5
    for file in files:
        picture = read_picture(file)
        np.testing.assert_array_equal(picture.pixels, evaluated(file))
        assert picture.name == str(file) and picture.notes == ()


def test_16_bits_are_scaled(tmp_path):
    """In a PNG as libpng does for evaluation, elsewhere to the nearest level below."""
    levels = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    for name in ("a.png", "a.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        picture = read_picture(tmp_path / name)
        np.testing.assert_array_equal(picture.pixels, evaluated(tmp_path / name))
        grey = picture.pixels[..., 0]
        assert np.abs(grey - levels / 257).max() <= 1
        assert (grey[0, 0], grey[-1, -1]) == (0, 255)
        assert "16 bits" in picture.notes[0]


def test_16_bits_in_three_channels_are_noted(tmp_path):
    """Pillow has read their upper bytes alone."""
    levels = np.linspace(0, 4095, 720).reshape(12, 20, 3)
    (tmp_path / "a.png").write_bytes(png_of(levels.astype(int), 16, 2))
    (note,) = read_picture(tmp_path / "a.png").notes
    assert note == "16 bits converted to 8: 65,535 is white"


@pytest.mark.parametrize(
    "levels",
    [
        np.linspace(-3e6, 9e6, 240).astype(np.int32),
        np.linspace(0, 1, 240, dtype=np.float32),
        np.linspace(-7, 4000, 240, dtype=np.float32),
    ],
)
def test_32_bits_are_stretched(levels, tmp_path):
    levels = levels.reshape(12, 20)
    Image.fromarray(levels).save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    own = levels.astype(np.float64)
    expected = 255 * (own - own.min()) / (own.max() - own.min())
    assert np.abs(picture.pixels[..., 1] - expected).max() < 0.51
    assert "32 bits" in picture.notes[0]
    np.testing.assert_array_equal(picture.pixels, evaluated(tmp_path / "a.tif"))


def test_32_bits_that_hold_usual_levels_stay(tmp_path):
    levels = noise(channels=0) // 2
    Image.fromarray(levels.astype(np.int32)).save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels[..., 2], levels)
    np.testing.assert_array_equal(picture.pixels, evaluated(tmp_path / "a.tif"))
    assert picture.notes == ()


def test_what_is_not_finite_is_refused(tmp_path):
    levels = np.linspace(0, 1, 240, dtype=np.float32).reshape(12, 20)
    levels[0, 0] = np.inf
    Image.fromarray(levels).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="a.tif: .*no finite numbers"):
        read_picture(tmp_path / "a.tif")
    with pytest.raises((tf.errors.OpError, ValueError)):
        evaluated(tmp_path / "a.tif")


def test_transparency_is_told(tmp_path):
    array = noise(channels=4)
    for alpha, told in ((255, 0), (17, 1)):
        array[..., 3] = alpha
        Image.fromarray(array).save(tmp_path / "a.png")
        picture = read_picture(tmp_path / "a.png")
        np.testing.assert_array_equal(picture.pixels, array[..., :3])
        assert len(picture.notes) == told
    palette = Image.fromarray(array[..., :3]).quantize(8)
    palette.save(tmp_path / "b.png", transparency=3)
    assert "transparent" in read_picture(tmp_path / "b.png").notes[0]


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_taken(ending, tmp_path):
    file = tmp_path / f"a.{ending}"
    frames = [Image.new("RGB", (24, 16), (i * 100, 50, 20)) for i in range(3)]
    frames[0].save(file, save_all=True, append_images=frames[1:])
    picture = read_picture(file)
    assert np.abs(picture.pixels.astype(int) - (0, 50, 20)).max() <= 4
    assert picture.notes == ("the first of 3 frames",)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_orientation_is_ignored_where_asked(ending, tmp_path):
    image, exif = Image.fromarray(smooth()), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / f"turned.{ending}", exif=exif)
    image.save(tmp_path / f"plain.{ending}")
    plain = read_picture(tmp_path / f"plain.{ending}").pixels
    file = tmp_path / f"turned.{ending}"
    found = read_picture(file, ignore_orientation=True).pixels
    np.testing.assert_array_equal(found, plain)
    np.testing.assert_array_equal(read_picture(file).pixels, np.rot90(plain, -1))


def test_planes_of_16_bits_are_refused(tmp_path):
    """Pillow would read every other byte of them."""
    planes = np.zeros((3, 4, 5), np.uint16).tobytes()
    tags = {256: 5, 257: 4, 258: 16, 259: 1, 262: 2, 277: 3, 278: 4, 284: 2}
    end = 8 + len(planes)
    tags |= {273: (end, [8, 48, 88]), 279: (end + 12, [40] * 3)}
    entries = b"".join(
        struct.pack("<HHII", tag, 4, *((3, v[0]) if isinstance(v, tuple) else (1, v)))
        for tag, v in sorted(tags.items())
    )
    more = struct.pack("<6I", *tags[273][1], *tags[279][1])
    head = struct.pack("<2sHI", b"II", 42, end + 24)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(head + planes + more + directory)
    with pytest.raises(UserError, match="a.tif: .*16 bits in separate planes"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1)])
def test_odd_sizes(shape, tmp_path):
    array = noise(*shape)
    Image.fromarray(array).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, array)


BAD = {
    "empty.png": (b"", "not an image in a format"),
    "text.jpg": (b"no image\n", "not an image in a format"),
    "cut.jpg": (jpeg()[:-900], "not a readable image"),
    "cut.png": (png()[:-900], "not a readable image"),
    "header.jpg": (jpeg()[:30], "not a"),
    "damaged.png": (
        png()[:200] + bytes(99) + png()[299:],
        "not a readable image",
    ),
    "zeros.gif": (bytes(1000), "not an image in a format"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_named_in_a_line(name, tmp_path, capfd):
    content, match = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=match) as error:
        read_picture(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(error.value)
    # Neither do the decoders say anything.
    assert capfd.readouterr() == ("", "")


def test_a_name_that_is_no_text(tmp_path):
    """Written to pages and tables, which are UTF-8."""
    file = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Image.new("L", (3, 4)).save(file, "PNG")
    picture = read_picture(pathlib.Path(os.fsdecode(file)))
    assert picture.name == f"{tmp_path}/caf\\xe9.png"
    assert picture.name.encode("utf-8")


def test_home_folders_are_meant_in_text_alone(tmp_path, monkeypatch):
    """A path may come from listing a folder, and a file be called as it likes."""
    (tmp_path / "~").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    Image.new("L", (3, 4)).save("home/a.png")
    Image.new("L", (5, 6)).save("~/a.png")
    Image.new("L", (7, 8)).save("~nosuchuser.png")
    assert read_picture("~/a.png").pixels.shape[:2] == (4, 3)
    assert read_picture(pathlib.Path("~/a.png")).pixels.shape[:2] == (6, 5)
    for name in ("~nosuchuser.png", pathlib.Path("~nosuchuser.png")):
        assert read_picture(name).pixels.shape[:2] == (8, 7)


def test_more_pixels_than_are_read(tmp_path, monkeypatch, capfd):
    """From what Pillow warns of to what it refuses, without a word in between."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("L", (40, 45)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").pixels.shape == (45, 40, 3)
    assert capfd.readouterr() == ("", "")
    Image.new("L", (50, 45)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="b.png: has more than"):
        read_picture(tmp_path / "b.png")


def test_places_that_are_no_files(tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, match in (
        ("folder.png", "a folder, not an image"),
        ("pipe.png", "not a regular file"),
        ("none.png", "No such file"),
    ):
        with pytest.raises(UserError, match=f"{name}: .*{match}"):
            read_picture(tmp_path / name)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png())
    if os.geteuid():
        (tmp_path / "a.png").chmod(0)
    else:  # whom no permission keeps out

        def refuse(file, mode):
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(UserError, match="a.png: Permission denied$"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 2), (8, 9, 3), (8, 9, 4)])
def test_arrays(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = read_picture(array).pixels
    assert found.shape == (8, 9, 3)
    channels = (0, 1, 2) if array.ndim == 3 and shape[-1] > 2 else (0, 0, 0)
    expected = np.stack([array.reshape(8, 9, -1)[..., c] for c in channels], -1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "image, match",
    [
        (
            np.zeros((8, 9, 5), np.uint8),
            "is an array of 8 x 9 x 5, uint8: .*1 to 4 channels",
        ),
        (np.zeros((3, 8, 9), np.uint8), "3 x 8 x 9, uint8: .*channels"),
        (np.zeros((0, 9, 3), np.uint8), "is an array of 0 x 9 x 3, "),
        (np.zeros(9, np.uint8), "is an array of 9, uint8: "),
        (np.zeros((1, 2, 8, 9, 3), np.uint8), "is an array of 1 x 2 x 8 x 9 x 3"),
        (
            np.full((8, 9, 3), -1.5),
            "9 x 3, float64: pass levels from 0 to 255 as uint8",
        ),
        (
            np.full((8, 9), 4095, np.uint16),
            "8 x 9, uint16: pass levels from 0 to 255 as uint8",
        ),
        (7, "is of type int: pass a path, an encoded image as bytes"),
        (None, "is of type NoneType: pass a path"),
        ([[1, 2]], "is of type list: pass a path.*one flat list"),
        (b"", "not an image in a format"),
        (b"no image", "not an image in a format"),
        (jpeg()[:-900], "not a readable image"),
        (os.fsencode(__file__), "not an image in a format"),
        (io.StringIO("x"), "bytes-like object is required, not 'str'"),
    ],
)
def test_what_can_be_no_image(image, match):
    with pytest.raises(UserError, match=f"^that(: | ).*{match}"):
        read_picture(image, "that")


def test_images_of_pillow_are_turned_and_converted():
    image = Image.fromarray(smooth())
    image.getexif()[0x0112] = 6
    found = read_picture(image).pixels
    np.testing.assert_array_equal(found, np.rot90(smooth(), -1))
    stored = read_picture(image, ignore_orientation=True).pixels
    np.testing.assert_array_equal(stored, smooth())
    # And the one that was given stays as it is.
    assert image.size == (56, 40)
    grey = read_picture(Image.new("L", (3, 4), 7)).pixels
    np.testing.assert_array_equal(grey, np.full((4, 3, 3), 7))


class Upload:
    """A file of a web framework: it is read, and not more."""

    def read(self):
        return png()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """a.png of `noise(64, 64)`, [1].png and more/b.png, each of another gray."""
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "notes.txt").write_text("no image")
    for name, level in (("more/b.png", 50), ("[1].png", 90)):
        Image.new("RGB", (64, 64), (level,) * 3).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)


def at_end():
    file = io.BytesIO(png())
    file.seek(0, io.SEEK_END)
    return file


def objects(*images):
    array = np.empty(len(images), object)
    array[:] = images
    return array


A, B, ONE = "a.png", "more/b.png", "[1].png"
ITSELF, FIRST, SECOND = "image 0", "image 0", "image 1"


@pytest.mark.parametrize(
    "given, names",
    [
        # Encoded.
        (png, [ITSELF]),
        (lambda: bytearray(png()), [ITSELF]),
        (lambda: memoryview(png()), [ITSELF]),
        (lambda: np.bytes_(png()), [ITSELF]),
        (lambda: tf.constant(png()), [ITSELF]),
        (lambda: io.BytesIO(png()), [ITSELF]),
        (at_end, [ITSELF]),
        (Upload, [ITSELF]),
        (lambda: open(A, "rb"), [A]),
        (lambda: [png(), open(B, "rb")], [FIRST, B]),
        # Paths, and what stands for some.
        (lambda: A, [A]),
        (lambda: pathlib.Path(A), [A]),
        (lambda: np.array([A, B]), [A, B]),
        (lambda: np.array([[A], [B]]), [A, B]),
        (lambda: np.array(A), [A]),
        (lambda: np.str_(A), [A]),
        (lambda: np.array([pathlib.Path(A), pathlib.Path(B)]), [A, B]),
        (lambda: (A, B, A), [A, B, A]),
        (lambda: map(str, [A, B]), [A, B]),
        (lambda: {A: 1}.keys(), [A]),
        (lambda: "*.png", [ONE, A]),
        (lambda: ["**/*.png", A], [ONE, A, B, A]),
        (lambda: "[1].png", [ONE]),
        (lambda: "more", [B]),
        (lambda: pathlib.Path("."), [ONE, A, B]),
        # Levels.
        (lambda: noise(64, 64), [ITSELF]),
        (lambda: tf.constant(noise(64, 64)), [ITSELF]),
        (lambda: jnp.asarray(noise(64, 64)), [ITSELF]),
        (lambda: np.stack([noise(64, 64)] * 2), [FIRST, SECOND]),
        (lambda: (noise(64, 64) for _ in range(2)), [FIRST, SECOND]),
        (lambda: objects(noise(64, 64), A, png()), [FIRST, A, "image 2"]),
        (lambda: [], []),
        (lambda: np.zeros((0, 8, 9, 3), np.uint8), []),
        # PIL images.
        (lambda: Image.open(A), [ITSELF]),
        (lambda: [Image.open(A), pathlib.Path(B)], [FIRST, B]),
    ],
)
def test_one_or_many(given, names, files):
    """Each is called by its path or number, and has the pixels that it stands for."""
    levels = {B: 50, ONE: 90}
    images_ = given()
    found = [read_picture(image, name) for name, image in each_image(images_)]
    assert [picture.name for picture in found] == names
    for picture in found:
        expected = levels.get(picture.name, noise(64, 64))
        np.testing.assert_array_equal(
            picture.pixels, np.broadcast_to(expected, (64, 64, 3))
        )


def test_pytorchs_tensors(torch):
    ((name, tensor),) = each_image(torch.from_numpy(noise(64, 64)))
    np.testing.assert_array_equal(read_picture(tensor, name).pixels, noise(64, 64))
    with pytest.raises(UserError, match="^images: .*BFloat16"):
        list(each_image(torch.zeros(3, 4).bfloat16()))


def closed(image):
    image.close()
    return image


def left():
    with Image.open(A) as image:
        return image


def without_file():
    with open(A, "rb") as file:
        return Image.open(file)


@pytest.mark.parametrize(
    "given, match",
    [
        (left, "^image 0: not a readable image"),
        (lambda: closed(Image.open(A)), "^image 0: not a readable image"),
        (lambda: closed(Image.new("L", (3, 4))), "^image 0: .* closed image"),
        (without_file, "^image 0: .* closed file"),
        (lambda: [A, closed(open(B, "rb"))], "^more/b.png: .* closed file"),
        (lambda: open(A), "^a.png: not a readable image .*decode"),
        (lambda: {"one": A}, "^one: No such file"),
        (lambda: "*.bmp", r"^\*.bmp: no image matches this pattern"),
        (lambda: "", "^an empty name is no image"),
        (lambda: "none.png", "^none.png: No such file"),
        *(
            (lambda url=url: [A, url], f"^{re.escape(url)}: a URL, .*content as bytes")
            for url in (
                "https://a.org/b.png",
                "gs://b/*.png",
                "data:image/png;base64,x",
            )
        ),
        (lambda: pathlib.Path("https://a.org/b.png"), "^https:/a.org/b.png: a URL"),
        (lambda: [A, [B]], "^image 1 is of type list: pass a path.* one flat list"),
    ],
)
def test_what_cannot_be_read_is_named_in_a_line(given, match, files):
    with pytest.raises(UserError, match=match) as told:
        for name, image in each_image(given()):
            read_picture(image, name)
    assert "\n" not in str(told.value) and len(str(told.value)) < 250


def test_a_name_like_a_url_may_be_a_file(files):
    pathlib.Path("http:").mkdir()
    pathlib.Path("a.png").rename("http:/a.png")
    ((name, image),) = each_image("http:/a.png")
    np.testing.assert_array_equal(read_picture(image).pixels, noise(64, 64))


def test_an_image_stays_open_and_a_file_can_be_given_again(files):
    with Image.open(A) as image, open(A, "rb") as file:
        for _ in range(2):
            for given in (image, file):
                np.testing.assert_array_equal(read_picture(given).pixels, noise(64, 64))
