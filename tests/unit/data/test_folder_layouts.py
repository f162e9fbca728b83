"""Class folders as people have them: which images count, of which class and split."""

import hashlib
import os
import types

import pytest
from PIL import Image

from vt_flax.data import storage
from vt_flax.data.folders import FolderSource
from vt_flax.data.sources import open_source
from vt_flax.data.split_check import check_splits, split_notes
from vt_flax.errors import UserError


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


@pytest.mark.parametrize("names", ["fold1 fold2", "2024 2025", "archive1 archive2"])
def test_any_folder_of_class_folders_is_a_split_if_named(tmp_path, names):
    one, other = names.split()
    make(tmp_path, *(f"{name}/{c}/1.jpg" for name in (one, other) for c in "ab"))
    assert opened(tmp_path, one) == {"a": [f"{one}/a/1.jpg"], "b": [f"{one}/b/1.jpg"]}
    # Without a name they are classes, whose images lie deeper, which is said.
    assert [*opened(tmp_path)] == [one, other]
    (note,) = notes(tmp_path)
    assert f"{one}, {other} are read as classes" in note and f"such as '{one}'" in note
    with pytest.raises(UserError, match=f"no split 'tr': .*{one}.*; .* write 'all'"):
        opened(tmp_path, "tr")


@pytest.mark.parametrize(
    "name", ["a+b", "my split", "v1.0", "train[old]", "50%", "test *", "träin"]
)
def test_names_of_split_folders_are_names(tmp_path, name):
    make(tmp_path, *(f"{name}/{c}/{i}.jpg" for c in "xy" for i in range(5)))
    assert sum(map(len, opened(tmp_path, name).values())) == 10
    if not {"+", "["} & {*name}:
        assert sum(map(len, opened(tmp_path, f"{name}[:30%]").values())) == 3


def test_splits_are_added_and_sliced(tmp_path):
    counts = {"train": 10, "val": 5, "extra": 4}
    make(
        tmp_path,
        *(
            f"{s}/{c}/{i}.jpg"
            for s, n in counts.items()
            for c in "ab"
            for i in range(n)
        ),
    )

    def order(split):
        source = FolderSource(tmp_path, split)
        return [source.describe(i) for i in range(len(source))]

    assert order("train+val") == order("train") + order("val")
    assert order("train[:10%] + val[-2:]") == order("train")[:2] + order("val")[8:]
    assert order("train[25%:75%]") == order("train")[5:15]
    assert order("train[:10]") + order("train[10:]") == order("train")
    assert len(order("all")) == len({*order("all")}) == 38
    assert order("all[:50%]") + order("all[50%:]") == order("all")
    # Classes and splits are mixed.
    assert {path.split("/")[-3] for path in order("all[:50%]")} == {*counts}
    assert sorted(order("train[:50%]")) != sorted(order("train"))[:10]


def test_a_resumed_run_notices_another_order(tmp_path, monkeypatch):
    """The identity is that of the images in their order, wherever the folder is."""
    for place in ("one", "other"):
        make(tmp_path / place, *(f"{c}/{i}.jpg" for c in "ab" for i in range(9)))
    splits = ["all", "all[:9]", "all[9:]", "all[9:]+all[:9]"]
    seen = [FolderSource(tmp_path / "one", split).identity() for split in splits]
    assert len({one["names"] for one in seen}) == 4
    for split, one in zip(splits, seen, strict=True):
        other = FolderSource(tmp_path / "other", split)
        assert other.identity() == one
        paths = [
            os.path.relpath(other.describe(i), tmp_path / "other")
            for i in range(len(other))
        ]
        digest = hashlib.sha256("\n".join(paths).encode()).hexdigest()
        assert one["names"] == digest[:16]
    monkeypatch.chdir(tmp_path / "one")
    source = open_source("folder:.", "all")
    assert source.identity() == seen[0]
    monkeypatch.setattr(hashlib, "sha256", None)  # computed once
    assert source.identity() == seen[0]
    monkeypatch.undo()
    (tmp_path / "one" / "a" / "deep").mkdir()
    (tmp_path / "one" / "a" / "3.jpg").rename(tmp_path / "one" / "a" / "deep" / "3.jpg")
    assert FolderSource(tmp_path / "one", "all").identity() != seen[0]


@pytest.mark.parametrize(
    "files, split, message",
    [
        # Splits, and folders around images, are no classes.
        (
            "train/1.jpg test/2.jpg",
            "all",
            "test, train are no names of classes: expected",
        ),
        ("Images/1.jpg masks/1.png", "all", "Images, masks are no names of"),
        ("images/1.jpg", "all", "images are no names of class"),
        ("train2017/1.jpg val2017/2.jpg", "all", "expected .*/SPLIT/CLASS/IMAGE"),
        (
            "train/1.jpg test/2.jpg",
            "train",
            "no split 'train': expected .*/train/CLASS/IMAGE, or .*/train.csv with",
        ),
        (
            "train/a/1.jpg train/b/1.jpg test/2.jpg",
            "test",
            "no split 'test': expected .*/test/CLASS/IMAGE",
        ),
        (
            "train/a/1.jpg train/b/1.jpg test/2.jpg",
            "all",
            "look like splits .train. are beside .*.test.: name",
        ),
        ("data/train/1.jpg data/val/2.jpg", "data", "data: train, val are no names of"),
        # Images that no class folder holds.
        ("1.jpg 2.jpg", "all", "no images in class folders of .*, but 2 beside them"),
        (
            "train/1.jpg train/a/no.txt",
            "train",
            "no images in class folders of .*/train: expected",
        ),
        ("", "all", "no images in class folders of .*: expected .*/CLASS/IMAGE, with"),
        # Misspelt splits.
        ("train/a/1.jpg test/a/1.jpg", "trian", "no split 'trian'.*did you mean train"),
        ("train/a/1.jpg test/a/1.jpg", "validation", "'validation'.*from test, train"),
        # Class folders with folders are no splits where images lie beside these.
        ("a/1.jpg a/more/2.jpg b/1.jpg", "train", "no split '.*write 'all' or 'all"),
        ("a/1.jpg a/more/2.jpg b/1.jpg", "a", "no split '.*write 'all' or 'all"),
        ("train/a/1.jpg val/b/1.jpg", "train+val", "different classes .a, b.: give"),
    ],
)
def test_what_is_refused(tmp_path, files, split, message):
    make(tmp_path, *files.split())
    with pytest.raises(UserError, match=message):
        opened(tmp_path, split)


def test_one_nested_folder_makes_no_splits(tmp_path):
    make(tmp_path, "cat/more/1.jpg", "cat/most/2.jpg", "dog/3.jpg", "eel/4.jpg")
    assert [*map(len, opened(tmp_path).values())] == [2, 1, 1]
    assert notes(tmp_path) == []


def test_a_class_without_images_and_one_folder_around_all_are_noted(tmp_path):
    make(tmp_path / "one", "a/1.jpg", "b/1.heic", "c/2.jpg")
    source = open_source(f"folder:{tmp_path}/one", "all")
    assert source.class_names == ("a", "b", "c")
    assert split_notes(source) == [
        f"{source.name} has no images of 1 of the 3 classes: b"
    ]
    make(tmp_path / "two", "photos/a/1.jpg", "photos/b/1.jpg")
    source = open_source(f"folder:{tmp_path}/two", "all")
    assert "photos are read as classes" in source.notes[0]
    with pytest.raises(UserError, match="has images of one class, 'photos'"):
        check_splits(source, source)


def test_a_class_may_be_called_like_a_split(tmp_path):
    make(tmp_path, "test/1.jpg", "cat/2.jpg", "images/3.jpg")
    assert [*opened(tmp_path)] == ["cat", "images", "test"]


def test_files_that_are_left_out_are_noted(tmp_path):
    """Files alone are counted, and folders whatever their names are read."""
    make(
        tmp_path,
        *("train/cat.jpg/1.jpg", "train/dog/2.jpg", "train/dog/v1.2/3.jpg"),
        *("train/9.jpg", "train/8.avif", "train/read.me", "7.jpg"),
        *("train/dog/a.txt", "train/dog/v1.2/b.heic", "train/dog/c", "train/dog/d~"),
        *("train/dog/.hidden/1.jpg", "train/__MACOSX/1.jpg", "train/dog/@eaDir/1.jpg"),
        *("train/dog/Thumbs.db", "train/dog/desktop.ini", "train/.DS_Store"),
        "train/.ipynb_checkpoints/1.jpg",
    )
    assert opened(tmp_path, "train") == {
        "cat.jpg": ["train/cat.jpg/1.jpg"],
        "dog": ["train/dog/2.jpg", "train/dog/v1.2/3.jpg"],
    }
    assert notes(tmp_path, "train") == [
        f"{tmp_path}: images left out beside the split folders: 1",
        f"{tmp_path}/train: images left out beside the class folders: 2",
        f"{tmp_path}/train: files left out that have no suffix of an image: 4 "
        "(.heic, .txt, none)",
    ]


def test_names_of_files_are_names(tmp_path):
    """Whatever a name may mean elsewhere, and bytes that are no text."""
    names = [
        "[1]",
        "*",
        "%20",
        "a b",
        "~x",
        "~",
        "ü漢",
        "a\nb",
        "x" * 251,
        "\udcff",
        "gs:",
    ]
    folders = [name[:200] for name in names]
    for folder in folders:
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("L", (1, 1)).save(tmp_path / folder / f"{name}.png")
    source = open_source(f"folder:{tmp_path}", "all")
    assert [*source.class_names] == sorted(folders)
    assert len(source) == len(names) ** 2
    pixels = {example.image for example in source.read(range(len(source)))}
    assert len(pixels) == 1
    assert len(source.identity()["names"]) == 16


def test_links(tmp_path):
    """Links to class folders and images are followed, but not around in circles."""
    data = make(tmp_path / "data", "cat/1.jpg", "dog/2.jpg")
    make(tmp_path / "elsewhere", "3.jpg", "deep/4.jpg")
    (data / "ant").symlink_to(tmp_path / "elsewhere")
    (data / "self").symlink_to(".")
    (data / "up").symlink_to(tmp_path)
    (data / "cat" / "link.jpg").symlink_to(data / "dog" / "2.jpg")
    (data / "cat" / "here").symlink_to(".")
    (data / "cat" / "above").symlink_to("..")
    (data / "cat" / "root").symlink_to("/")
    (data / "cat" / "loop").symlink_to("loop")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(data / "ant")
    (tmp_path / "elsewhere" / "deep" / "more").symlink_to(data / "dog")
    (data / "dog" / "cycle").symlink_to(tmp_path / "elsewhere" / "deep")
    os.mkfifo(data / "dog" / "pipe.jpg")
    assert opened(data) == {
        "ant": ["ant/3.jpg", "ant/deep/4.jpg", "ant/deep/more/2.jpg"],
        "cat": ["cat/1.jpg", "cat/link.jpg"],
        "dog": ["dog/2.jpg", "dog/cycle/4.jpg"],
    }
    # An image whose link leads nowhere is an error, not an image less.
    (data / "dog" / "gone.jpg").symlink_to("nowhere")
    source = open_source(f"folder:{data}", "all")
    with pytest.raises(UserError, match="gone.jpg: No such file"):
        source.read(range(len(source)))


def test_a_bucket_is_listed_without_a_request_for_each_file(monkeypatch):
    import tensorflow as tf

    paths = [
        f"gs://b/d/{s}/{c}/{i}.jpg"
        for s in ("train", "val")
        for c in "xy"
        for i in range(50)
    ]
    paths += [
        "gs://b/d/train/x/deep/1.jpg",
        "gs://b/d/train/x.jpg/1.jpg",
        "gs://b/d/train/x/a.txt",
    ]
    paths += ["gs://b/d/val/x.jpg/2.jpg"]
    requests = []

    def listdir(path):
        """Lists as TensorFlow does of Google's buckets: names of folders end in /."""
        requests.append(path)
        prefix = f"{path.rstrip('/')}/"
        rest = [p.removeprefix(prefix) for p in paths if p.startswith(prefix)]
        return sorted({name[: name.find("/") + 1] or name for name in rest})

    def stat(path):
        requests.append(path)
        folder = any(p.startswith(f"{path.rstrip('/')}/") for p in paths)
        return types.SimpleNamespace(is_directory=folder)

    monkeypatch.setattr(storage, "_check_connection", lambda path: None)
    monkeypatch.setattr(tf.io.gfile, "listdir", listdir)
    monkeypatch.setattr(tf.io.gfile, "stat", stat)
    source = open_source("folder:gs://b/d", "train")
    assert source.class_names == ("x", "x.jpg", "y")
    assert [*source.class_counts()] == [51, 1, 50]
    found = {source.describe(i) for i in range(len(source))}
    assert found == {p for p in paths if "/train/" in p and p.endswith(".jpg")}
    assert len(requests) <= 8
