"""Images as people have them: any mode and size, one or many, and what is no image.

That the pixels are those of training and evaluation is tested in
`unit/data/test_same_pixels.py`.
"""

import io
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from image_files import encode, with_orientation
from PIL import Image

from vt_flax.errors import UserError
from vt_flax.inference.reading import each_image, find_images, read_picture


def noise(height=12, width=20, channels=3):
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def png():
    return encode(noise(), "PNG")


# ---------------------------------------------------------------------------- decoding


def test_conversions_are_noted(tmp_path):
    levels = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    alpha = noise(channels=4)
    alpha[..., 3] = 17
    frames = [Image.new("RGB", (24, 16), (i * 100, 50, 20)) for i in range(3)]
    for name, image, options, note in (
        (
            "wide.png",
            Image.fromarray(levels * 16),
            {},
            "16 bits converted to 8: 65,535",
        ),
        ("alpha.png", Image.fromarray(alpha), {}, "transparent pixels"),
        (
            "frames.gif",
            frames[0],
            {"save_all": True, "append_images": frames[1:]},
            "the first of 3 frames",
        ),
    ):
        image.save(tmp_path / name, **options)
        (found,) = read_picture(tmp_path / name).notes
        assert note in found
    picture = read_picture(tmp_path / "alpha.png")
    np.testing.assert_array_equal(picture.pixels, alpha[..., :3])
    first = read_picture(tmp_path / "frames.gif").pixels.astype(int)
    assert np.abs(first - (0, 50, 20)).max() <= 4
    alpha[..., 3] = 255
    assert read_picture(Image.fromarray(alpha)).notes == ()


def test_orientation(tmp_path):
    image = Image.fromarray(noise())
    image.save(tmp_path / "turned.png", **with_orientation(6))
    upright = np.rot90(noise(), -1)
    in_memory = Image.open(tmp_path / "turned.png")
    for given in (tmp_path / "turned.png", in_memory):
        np.testing.assert_array_equal(read_picture(given).pixels, upright)
        stored = read_picture(given, ignore_orientation=True).pixels
        np.testing.assert_array_equal(stored, noise())
    assert in_memory.size == (20, 12)  # the given image stays as it is


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not an image in a format"),
        (b"no image\n", "not an image in a format"),
        (encode(noise(64, 64), "JPEG")[:-900], "not a readable image"),
        (encode(noise(64, 64), "PNG")[:-900], "not a readable image"),
        (encode(np.zeros((4, 4), np.float32), "TIFF"), "32 bits per pixel"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS is"),
    ],
)
def test_what_is_no_image_is_one_line(content, message, tmp_path, capfd):
    file = tmp_path / "a.png"
    file.write_bytes(content)
    for given, name in ((file, file), (content, "that")):
        with pytest.raises(UserError, match=message) as error:
            read_picture(given, "that")
        assert str(error.value).startswith(f"{name}: ")
        assert "\n" not in str(error.value)
    # The decoders print nothing either.
    assert capfd.readouterr() == ("", "")


def test_more_pixels_than_pillow_reads(monkeypatch, capfd):
    """Pillow warns from MAX_IMAGE_PIXELS on, and refuses twice as many."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    assert read_picture(png()).pixels.shape == (12, 20, 3)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="^a.png: .*exceeds limit"):
        read_picture(png(), "a.png")


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, message in (
        ("folder.png", "Is a directory"),
        ("none.png", "No such file"),
        ("loop.png", "Too many levels of symbolic links"),
        (300 * "n", "File name too long"),
    ):
        with pytest.raises(UserError, match=f"{name}: {message}"):
            read_picture(tmp_path / name)


def test_a_name_that_is_no_text(tmp_path):
    """Names are written to pages and tables, which are UTF-8."""
    file = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Image.new("L", (3, 4)).save(file, "PNG")
    picture = read_picture(pathlib.Path(os.fsdecode(file)))
    assert picture.name == f"{tmp_path}/caf\\xe9.png"


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 2), (8, 9, 3), (8, 9, 4)])
def test_arrays(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = read_picture(array).pixels
    assert found.shape == (8, 9, 3)
    channels = (0, 1, 2) if array.ndim == 3 and shape[-1] > 2 else (0, 0, 0)
    expected = np.stack([array.reshape(8, 9, -1)[..., c] for c in channels], -1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((8, 9, 5), np.uint8), "is an array of 8 x 9 x 5, uint8: "),
        (np.zeros((0, 9, 3), np.uint8), "is an array of 0 x 9 x 3, "),
        (np.zeros((8, 9, 3)), "float64: pass levels from 0 to 255 as uint8"),
        (7, "is of type int: pass a path, "),
        ([[1, 2]], "is of type list: .*one flat list"),
        (io.StringIO("x"), "not a readable image"),
    ],
)
def test_other_objects(image, message):
    with pytest.raises(UserError, match=f"^that(: | ).*{message}"):
        read_picture(image, "that")


# ----------------------------------------------------------------- one image or many


@pytest.fixture
def files(tmp_path, monkeypatch):
    """a.png of `noise()`; [1].png and more/b.png of gray levels; other files."""
    (tmp_path / "a.png").write_bytes(png())
    for name in ("more/notes.txt", "more/.hidden.png", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    for name, level in (("more/b.png", 50), ("[1].png", 90)):
        Image.new("RGB", (20, 12), (level,) * 3).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)


A, B, ONE = "a.png", "more/b.png", "[1].png"


@pytest.mark.parametrize(
    "given, names",
    [
        # Encoded.
        (png, ["image 0"]),
        (lambda: memoryview(png()), ["image 0"]),
        (lambda: io.BytesIO(png()), ["image 0"]),
        (lambda: [png(), io.BytesIO(png())], ["image 0", "image 1"]),
        # Paths, and what stands for some.
        (lambda: A, [A]),
        (lambda: pathlib.Path(A), [A]),
        (lambda: np.array([A, B]), [A, B]),
        (lambda: (A, B, A), [A, B, A]),
        (lambda: map(str, [A, B]), [A, B]),
        (lambda: ["**/*.png", A], [ONE, A, B, A]),
        (lambda: ONE, [ONE]),
        (lambda: pathlib.Path("."), [ONE, A, B]),
        # Levels.
        (noise, ["image 0"]),
        (lambda: jnp.asarray(noise()), ["image 0"]),
        (lambda: np.stack([noise()] * 2), ["image 0", "image 1"]),
        (lambda: [], []),
        (lambda: np.zeros((0, 8, 9, 3), np.uint8), []),
        # PIL images, and a mixture.
        (lambda: Image.open(A), ["image 0"]),
        (
            lambda: [noise(), A, png(), Image.open(A)],
            ["image 0", A, "image 2", "image 3"],
        ),
    ],
)
def test_one_or_many(given, names, files):
    """Each is called by its path or index, and has the pixels that it stands for."""
    levels = {B: 50, ONE: 90}
    found = [read_picture(image, name) for name, image in each_image(given())]
    assert [picture.name for picture in found] == names
    for picture in found:
        if picture.pixels.min() < picture.pixels.max():
            np.testing.assert_array_equal(picture.pixels, noise())
        else:
            assert picture.pixels[0, 0, 0] == levels.get(picture.name, 50)


def test_pytorchs_tensors(torch):
    ((name, tensor),) = each_image(torch.from_numpy(noise()))
    np.testing.assert_array_equal(read_picture(tensor, name).pixels, noise())


def test_an_image_and_an_open_file_can_be_given_again(files):
    with Image.open(A) as image, open(A, "rb") as file:
        for given in (image, file, image, file):
            np.testing.assert_array_equal(read_picture(given).pixels, noise())


# ----------------------------------------------------------------------- finding files


def found(*names, **options):
    return [str(path) for path in find_images(names, **options)]


def test_folders_and_patterns(files):
    assert found(".") == [ONE, A, B]
    assert found("more") == [B]
    assert found(".", leave_out=pathlib.Path("more")) == [ONE, A]
    # A folder that is named is meant.
    assert found("more", leave_out=pathlib.Path("more")) == [B]
    assert found("more/*") == [B, "more/notes.txt"]
    assert found("more", "**/*.png") == [B, ONE, A]
    assert found("none.png", 300 * "n") == ["none.png", 300 * "n"]  # reading them fails
    for name, message in (("empty", "no images in this"), ("*.bmp", "no file matches")):
        with pytest.raises(UserError) as error:
            find_images([name])
        assert str(error.value).startswith(f"{name}: {message}")


def test_a_folder_that_cannot_be_read(files, monkeypatch):
    def refuse(path):  # no permission keeps root out
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="more: Permission denied"):
        find_images(["more"])


def test_home_folders_are_meant_in_strings_alone(tmp_path, monkeypatch):
    """A path may come from listing a folder, where a file may have any name."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("home/a.png", "~/a.png", "~nosuchuser.png")):
        pathlib.Path(name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, i + 1)).save(name)
    for given, height in (
        ("~/a.png", 1),
        ("~/*.png", 1),
        (pathlib.Path("~/a.png"), 2),
        ("~nosuchuser.png", 3),
    ):
        ((_, file),) = each_image(given)
        assert read_picture(file).pixels.shape[0] == height
