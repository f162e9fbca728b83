"""One list of images for training, masks and predict, all of which decode."""

import io
import tracemalloc

import numpy as np
from image_files import encode
from PIL import Image
from test_folder_layouts import make

from vt_flax.data import images
from vt_flax.data.folders import FolderSource
from vt_flax.data.host import tensorflow
from vt_flax.data.image_files import IMAGE_SUFFIXES
from vt_flax.data.prepare import pairs
from vt_flax.inference.reading import find_images

# What people keep images in, at least.
SUFFIXES = {*".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .tga .ppm".split()}
SUFFIXES |= {*".pgm .avif .jp2 .mpo".split()}
FORMATS = {".pjpeg": "JPEG", ".pjp": "JPEG", ".dib": "DIB", ".mpo": "MPO"}


def test_every_suffix_is_decoded_as_pillow_does():
    assert {*IMAGE_SUFFIXES} >= SUFFIXES
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    known = Image.registered_extensions() | FORMATS
    # Older versions of Pillow read QOI, but do not write it.
    for suffix in [one for one in IMAGE_SUFFIXES if known[one] in Image.SAVE]:
        modes = {".pbm": "1", ".pgm": "L"}
        image = Image.fromarray(pixels).convert(modes.get(suffix, "RGB"))
        encoded = encode(image, known[suffix])
        expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        found = images.decode(tensorflow().constant(encoded)).numpy()
        np.testing.assert_array_equal(found, expected, suffix)


def test_all_commands_see_the_same_images(tmp_path):
    """Deep folders, links, names and suffixes; litter is left out by all."""
    make(
        tmp_path,
        *(f"a/{i}{suffix}" for i, suffix in enumerate(IMAGE_SUFFIXES)),
        *("a/UPPER.JFIF", "b.png/1.png", "a/deep/er/2.png", "b.png/@eaDir/1.png"),
        *("a/.x.png", "a/x.heic", "a/x", "__MACOSX/1.png", "a/Thumbs.db", "a/~x.tif"),
    )
    make(tmp_path / "elsewhere", "linked.png")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    source = FolderSource(tmp_path, "all")
    trained = {source.describe(i) for i in range(len(source))}
    assert len(trained) == len(IMAGE_SUFFIXES) + 1 + 1 + 1 + 1 + 1 + 1
    assert trained == {str(path) for path in find_images([str(tmp_path)])}
    paired = pairs.images_in(tmp_path)
    assert {str(path) for path in paired.values()} == trained
    assert {"a/deep/er/2", "a/UPPER", "b.png/1", "a/link/linked"} <= {*paired}


def test_a_folder_of_many_images_takes_little_memory(tmp_path):
    """As for ImageNet, where a list of paths took 830 MB."""
    names = [f"n01440764_{i}.JPEG" for i in range(1000)]
    make(tmp_path, *(f"n{label:08}/{name}" for label in range(5) for name in names))
    FolderSource(tmp_path, "all[:1%]")  # imports
    tracemalloc.start()
    source = FolderSource(tmp_path, "all")
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 140 * len(source) == 140 * 5_000
