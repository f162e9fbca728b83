"""Class folders as people have them: which images count, of which class and split."""

import os
import pathlib
import types

import numpy as np
import pytest

from vt_flax.data.folders import FolderSource
from vt_flax.data.host import tensorflow
from vt_flax.data.image_files import IMAGE_SUFFIXES
from vt_flax.data.imagenet import class_names
from vt_flax.data.prepare import pairs
from vt_flax.data.sources import open_source
from vt_flax.data.split_check import check_splits, split_notes
from vt_flax.errors import UserError
from vt_flax.inference.reading import find_images

# Images 1 to 8 by their line in Caffe's `val.txt`, which numbers the classes by WordNet
# id, from 0.
CAFFE = (65, 970, 230, 809, 516, 57, 334, 415)
# The first of 20 images of two classes in the fixed order.
FIRST = ("b/9.jpg", "a/6.jpg", "a/8.jpg")


def make(folder, *names):
    """Makes images, whose pixels do not matter here, and other files."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    return folder


def opened(folder, split="all"):
    """Returns the images of a split by class, each as its path in the folder."""
    source = open_source(f"folder:{folder}", split)
    found = {name: [] for name in source.class_names}
    for i, example in enumerate(source.read(range(len(source)))):
        path = os.path.relpath(source.describe(i), folder)
        found[source.class_names[example.label]].append(path)
    return {name: sorted(paths) for name, paths in found.items()}


def notes(folder, split="all"):
    return [*open_source(f"folder:{folder}", split).notes]


def order(folder, split):
    source = FolderSource(folder, split)
    return [source.describe(i) for i in range(len(source))]


def test_images_deeper_in_a_class_folder_count(tmp_path):
    """As torchvision's ImageFolder has them, in both layouts."""
    flat = ["cat/2.jpg", "cat/more/1.jpg", "cat/more/a/b/3.png", "dog/1.jpg"]
    make(tmp_path / "flat", *flat)
    assert opened(tmp_path / "flat") == {"cat": flat[:3], "dog": flat[3:]}
    split = [f"train/{name}" for name in flat] + ["val/cat/x/9.jpg", "val/dog/8.jpg"]
    make(tmp_path / "split", *split)
    assert opened(tmp_path / "split", "train") == {"cat": split[:3], "dog": split[3:4]}
    assert opened(tmp_path / "split", "val") == {"cat": split[4:5], "dog": split[5:]}
    assert notes(tmp_path / "flat") == notes(tmp_path / "split", "train") == []


@pytest.mark.parametrize("name", ["fold1", "a+b", "50%", "test *", "träin"])
def test_any_folder_of_class_folders_is_a_split_if_named(tmp_path, name):
    make(tmp_path, *(f"{name}/{c}/{i}.jpg" for c in "xy" for i in range(5)))
    assert sum(map(len, opened(tmp_path, name).values())) == 10
    if "+" not in name:
        assert sum(map(len, opened(tmp_path, f"{name}[:30%]").values())) == 3


def test_splits_are_added_and_sliced(tmp_path):
    """A fixed order, which a seed or a version of NumPy does not change."""
    files = [f"{c}/{i}.jpg" for c in "ab" for i in range(10)]
    make(tmp_path / "flat", *files)
    make(tmp_path / "some", *(f"{s}/{f}" for s in ("train", "val") for f in files))
    folder = tmp_path / "some"
    train, val = order(folder, "train"), order(folder, "val")
    assert order(folder, "train+val") == train + val
    assert order(folder, "train[:10%] + val[-2:]") == train[:2] + val[18:]
    assert order(folder, "train[25%:75%]") == train[5:15]
    whole = order(tmp_path / "flat", "all")
    assert len({*whole}) == 20
    assert whole[:3] == [f"{tmp_path}/flat/{n}" for n in FIRST]
    first, second = (
        order(tmp_path / "flat", "all[:50%]"),
        order(tmp_path / "flat", "all[50%:]"),
    )
    assert first + second == whole and {path.split("/")[-2] for path in first} == {
        *"ab"
    }


def test_a_resumed_run_notices_another_order(tmp_path):
    """The identity is that of the images in their order, wherever the folder is."""
    for place in ("one", "other"):
        make(tmp_path / place, *(f"{c}/{i}.jpg" for c in "ab" for i in range(9)))
    splits = ["all", "all[:9]", "all[9:]", "all[9:]+all[:9]"]
    seen = [FolderSource(tmp_path / "one", split).identity() for split in splits]
    assert len({one["names"] for one in seen}) == 4
    assert seen == [FolderSource(tmp_path / "other", s).identity() for s in splits]
    (tmp_path / "one" / "a" / "3.jpg").rename(tmp_path / "one" / "a" / "30.jpg")
    assert FolderSource(tmp_path / "one", "all").identity() != seen[0]


@pytest.mark.parametrize(
    "files, split, message",
    [
        # Splits, and folders around images, are no classes.
        ("train/1.jpg test/2.jpg", "all", "test, train look like splits"),
        ("train/a/1.jpg x/b/1.jpg", "all", "train look like splits"),
        ("train/1.jpg", "train", "folders of .*/train, and 1 beside .*/train/CLASS"),
        # Images that no class folder holds.
        ("1.jpg 2.jpg", "all", "no images in class folders of .*, and 2 beside them"),
        ("", "all", "no images in class folders of .*: expected .*/CLASS/IMAGE, with"),
        # Misspelt splits.
        ("train/a/1.jpg test/a/1.jpg", "trian", "no split 'trian'.*did you mean train"),
        ("a/1.jpg b/1.jpg", "train", "no split 'train'.*write 'all' or 'all"),
        ("train/a/1.jpg val/b/1.jpg", "train+val", "different classes .a, b.: give"),
        ("a/1.jpg b/1.jpg", "all[:x]", "all.:x.. .*is no slice of 2 images"),
        ("a/1.jpg b/1.jpg", "all[3:1]", "is no slice of 2 images"),
        ("a/1.jpg b/1.jpg", "all[2:]", "'all.2:.' .* is empty"),
        ("a/1.jpg b/1.jpg", "all[", "split 'all.': write a name"),
    ],
)
def test_what_is_refused(tmp_path, files, split, message):
    make(tmp_path, *files.split())
    with pytest.raises(UserError, match=message):
        opened(tmp_path, split)
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        opened(tmp_path / "nowhere", split)


def test_files_that_are_left_out_are_noted(tmp_path):
    """Files alone are counted, and folders whatever their names are read."""
    make(
        tmp_path,
        *("train/cat.jpg/1.jpg", "train/dog/2.jpg", "train/dog/v1.2/3.jpg"),
        *("train/9.jpg", "train/read.me", "7.jpg", "train/dog/a.txt"),
        *("train/dog/v1.2/b.heic", "train/dog/c", "train/dog/d~"),
        *("train/dog/.hidden/1.jpg", "train/__MACOSX/1.jpg", "train/dog/@eaDir/1.jpg"),
        *("train/dog/Thumbs.db", "train/.DS_Store", "train/.ipynb_checkpoints/1.jpg"),
    )
    assert opened(tmp_path, "train") == {
        "cat.jpg": ["train/cat.jpg/1.jpg"],
        "dog": ["train/dog/2.jpg", "train/dog/v1.2/3.jpg"],
    }
    assert notes(tmp_path, "train") == [
        f"{tmp_path}/train: images left out beside the class folders: 1",
        f"{tmp_path}/train: files left out that have no suffix of an image: 4 "
        "(.heic, .txt, none)",
        f"{tmp_path}: images left out beside the split folders: 1",
    ]


def test_names_of_files_are_names(tmp_path):
    """Whatever a name may mean elsewhere, and bytes that are no text."""
    names = ["[1]", "*", "%20", "a b", "~x", "ü漢", "a\nb", "x" * 200, "\udcff", "gs:"]
    make(tmp_path, *(f"{folder}/{name}.png" for folder in names for name in names))
    source = FolderSource(tmp_path, "all")
    assert [*source.class_names] == sorted(names)
    assert len(source.read(range(len(source)))) == len(names) ** 2
    assert len(source.identity()["names"]) == 16


def test_links(tmp_path):
    """Links to class folders and images are followed, but not around in circles."""
    data = make(tmp_path / "data", "cat/1.jpg", "dog/2.jpg")
    make(tmp_path / "elsewhere", "3.jpg", "deep/4.jpg")
    (data / "ant").symlink_to(tmp_path / "elsewhere")
    (data / "cat" / "link.jpg").symlink_to(data / "dog" / "2.jpg")
    (data / "cat" / "here").symlink_to(".")
    (data / "cat" / "root").symlink_to("/")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(data / "ant")
    (tmp_path / "elsewhere" / "deep" / "more").symlink_to(data / "dog")
    (data / "dog" / "cycle").symlink_to(tmp_path / "elsewhere" / "deep")
    assert opened(data) == {
        "ant": ["ant/3.jpg", "ant/deep/4.jpg", "ant/deep/more/2.jpg"],
        "cat": ["cat/1.jpg", "cat/link.jpg"],
        "dog": ["dog/2.jpg", "dog/cycle/4.jpg"],
    }
    # An image whose link leads nowhere is an error, not an image less.
    (data / "dog" / "gone.jpg").symlink_to("nowhere")
    source = FolderSource(data, "all")
    with pytest.raises(UserError, match="gone.jpg: No such file"):
        source.read(range(len(source)))


def test_a_bucket_is_listed_without_a_request_for_each_file(monkeypatch):
    tf = tensorflow()
    paths = [f"{s}/{c}/{i}.jpg" for s in ("train", "val") for c in "xy" for i in "123"]
    paths += ["train/x/deep/1.jpg", "train/x/a.txt"]
    paths = [f"gs://b/d/{path}" for path in paths]
    requests = []

    def listdir(path):
        """Lists as TensorFlow does of Google's buckets: names of folders end in /."""
        requests.append(path)
        prefix = f"{path.rstrip('/')}/"
        rest = [p.removeprefix(prefix) for p in paths if p.startswith(prefix)]
        return sorted({name[: name.find("/") + 1] or name for name in rest})

    def stat(path):
        return types.SimpleNamespace(is_directory=True)

    monkeypatch.setattr(tf.io.gfile, "listdir", listdir)
    monkeypatch.setattr(tf.io.gfile, "stat", stat)
    source = open_source("folder:gs://b/d", "train")
    assert [*source.class_counts()] == [4, 3]
    found = {source.describe(i) for i in range(len(source))}
    assert found == {p for p in paths if "/train/" in p and p.endswith(".jpg")}
    assert len(requests) <= 5


def test_imagenets_validation_images_need_no_class_folders(tmp_path):
    names = class_names()
    make(tmp_path, *(f"train/{name}/{name}_1.JPEG" for name in names))
    images = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, len(CAFFE) + 1)]
    make(tmp_path, *(f"val/{image}" for image in images))
    val = FolderSource(tmp_path, "val")
    assert (
        val.class_names == FolderSource(tmp_path, "train").class_names == tuple(names)
    )
    found = {
        pathlib.Path(val.describe(i)).name: example.label
        for i, example in enumerate(val.read(range(len(val))))
    }
    assert found == dict(zip(images, CAFFE, strict=True))
    (note,) = val.notes
    assert "the classes are those that ImageNet has published" in note
    # With other images among them, there is no knowing.
    make(tmp_path, "val/another.JPEG")
    with pytest.raises(UserError, match="expected .*/val/CLASS/IMAGE"):
        FolderSource(tmp_path, "val")


# Images for training, masks and predict.


def test_all_commands_see_the_same_images(tmp_path):
    """Deep folders, links, names and suffixes; all leave out litter and pipes."""
    make(
        tmp_path,
        *(f"a/{i}{suffix}" for i, suffix in enumerate(IMAGE_SUFFIXES)),
        *("a/UPPER.JFIF", "b.png/1.png", "a/deep/er/2.png", "b.png/@eaDir/1.png"),
        *("a/.x.png", "a/x.heic", "a/x", "__MACOSX/1.png", "a/Thumbs.db", "a/~x.tif"),
    )
    make(tmp_path / "elsewhere", "linked.png")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    # Whoever reads a pipe waits for ever.
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "to_pipe.png").symlink_to(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "to_device.png").symlink_to("/dev/zero")
    trained = {*order(tmp_path, "all")}
    assert len(trained) == len(IMAGE_SUFFIXES) + 6
    assert trained == {str(path) for path in find_images([str(tmp_path)])}
    assert trained == {str(path) for path in pairs.images_in(tmp_path).values()}


# Notes before a run on missing classes and on examples that both splits share.


@pytest.fixture
def photos(tmp_path):
    """Splits of 8 a, 4 b, 1 c; of 3 a, 3 b, no c; of c alone, and of a alone."""
    counts = {"train": (8, 4, 1), "val": (3, 3, 0), "odd": (0, 0, 2), "one": (5, 0, 0)}
    for split, numbers in counts.items():
        for name, count in zip("abc", numbers, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            make(tmp_path, *(f"{split}/{name}/{i}.jpg" for i in range(count)))
    return f"folder:{tmp_path}"


def check(name, train, evaluation, data_dir=""):
    return check_splits(
        open_source(name, train, data_dir), open_source(name, evaluation, data_dir)
    )


def test_classes_that_a_split_lacks(photos):
    assert check(photos, "train+odd[:1]", "one+odd[1:]+val") == []
    note = f"{photos} val has no images of 1 of the 3 classes: c"
    assert check(photos, "train", "val") == check(photos, "val", "train") == [note]
    alone = split_notes(open_source(photos, "one"))
    assert alone == [f"{photos} one has no images of 2 of the 3 classes: b, c"]
    with pytest.raises(UserError, match="one has images of one class, 'a': a classif"):
        check(photos, "one", "val")
    with pytest.raises(
        UserError, match="odd has images of classes c alone, and .* val"
    ):
        check(photos, "val", "odd")


@pytest.mark.parametrize("name", ["folder", "digits"])
def test_examples_of_both_splits_are_counted(name, photos, digits):
    name, data_dir = (photos, "") if name == "folder" else (name, digits)
    whole = len(open_source(name, "train", data_dir))
    common = round(0.8 * whole) - round(0.7 * whole)
    found = check(name, "train[:80%]", "train[70%:]", data_dir)
    total = whole - round(0.7 * whole)
    what = f"{common} of the {total} examples of {name} train[70%:] are also in {name}"
    assert found[-1].startswith(f"{what} train[:80%]: ")
    # Not by their places in either split.
    source = open_source(name, "train[5:]+train[:5]", data_dir)
    members = open_source(name, "train", data_dir).members()
    np.testing.assert_array_equal(source.members(), members[np.r_[5:whole, :5]])


def test_images_of_linked_folders_are_the_same(photos):
    folder = pathlib.Path(photos.removeprefix("folder:"))
    (folder / "linked").symlink_to("train")
    (note,) = check(photos, "train", "linked")
    assert note.startswith(f"13 of the 13 examples of {photos} linked are also in ")
