"""One list of images for training, masks and predict, all of which decode."""

import io
import os
import tracemalloc

import numpy as np
from image_files import encode
from PIL import Image
from test_folder_layouts import make

from vt_flax.data import images
from vt_flax.data.file_table import FileTable
from vt_flax.data.folders import FolderSource
from vt_flax.data.host import tensorflow
from vt_flax.data.image_files import IMAGE_SUFFIXES
from vt_flax.data.prepare import pairs
from vt_flax.inference.files import find_images

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


def test_a_table_of_files_is_a_list_of_paths_in_little_memory():
    """As for ImageNet, where a list took 830 MB; names may be any bytes."""
    names = [f"n01440764_{i}.JPEG" for i in range(1000)]
    table = FileTable()
    tracemalloc.start()
    for label in range(100):
        table.add(f"/data/train/n{label:08}", names, [label] * len(names))
    table.add("/empty", [], [])
    table.add("/data", ["ü\udcff.png", "b"], [7, 8])
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 50 * len(table)
    paths = [
        f"/data/train/n{label:08}/{name}" for label in range(100) for name in names
    ]
    paths += ["/data/ü\udcff.png", "/data/b"]
    labels = [*np.repeat(range(100), len(names)), 7, 8]
    assert len(table) == len(paths) == 100_002
    np.testing.assert_array_equal(table.classes(), labels)
    order = np.random.default_rng(0).permutation(len(table))
    found = [
        os.fsdecode(table.folders[folder] + name)
        for block in table.blocks(order)
        for folder, name in zip(*block, strict=True)
    ]
    assert found == [paths[i] for i in order]
    assert [table.path(i) for i in order[:99]] == found[:99]
