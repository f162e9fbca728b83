"""Files, folders and patterns."""

import os
import pathlib

import pytest

from vt_flax.errors import UserError
from vt_flax.inference.files import find_images


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in (
        *("b.png", "a.JPG", "notes.txt", ".hidden.png", "raw.dat"),
        *("x.png/inside.webp", "deep/er/1.jpg", "deep/2.tiff", ".git/3.png"),
        *("out/4.png", "empty/readme.md"),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*names, **options):
    return [str(path) for path in find_images(names, **options)]


EVERYTHING = ["a.JPG", "b.png", "deep/2.tiff", "deep/er/1.jpg", "out/4.png"]
EVERYTHING += ["x.png/inside.webp"]


def test_folders(tree):
    assert found(".") == EVERYTHING
    assert found("x.png") == ["x.png/inside.webp"]
    assert found(str(tree / "deep")) == [f"{tree}/deep/2.tiff", f"{tree}/deep/er/1.jpg"]


def test_a_folder_that_is_left_out(tree):
    without = [name for name in EVERYTHING if "out" not in name]
    assert found(".", leave_out=pathlib.Path("out")) == without
    # Named itself, it is meant.
    assert found("out", leave_out=pathlib.Path("out")) == ["out/4.png"]


def test_patterns(tree):
    assert found("*.png") == ["b.png"]
    assert found("**/*.png") == ["b.png", "out/4.png"]
    assert found("*") == ["a.JPG", "b.png"]
    assert found("**/er/*") == ["deep/er/1.jpg"]
    assert found("[ab].*") == ["a.JPG", "b.png"]
    # What else an image may be called is asked for by its ending.
    assert found("*.dat") == ["raw.dat"]


def test_files_are_taken_as_they_are(tree):
    (tree / "[1].png").write_text("")
    names = ["raw.dat", "gone.png", "[1].png", "notes.txt"]
    assert found(*names) == names


def test_home_folders_are_those_of_typed_names(tree, monkeypatch):
    """A file may be called like somebody's home folder, or like nobody's."""
    home = tree / "home"
    (home / "~").mkdir(parents=True)
    for name in ("~nosuchuser.png", "~root.png", "~/a.png"):
        (home / name).write_text("")
    monkeypatch.setenv("HOME", str(home))
    listed = [f"{home}/~nosuchuser.png", f"{home}/~root.png", f"{home}/~/a.png"]
    assert found("~") == listed
    assert found("~/*.png") == listed[:2]
    monkeypatch.chdir(home)
    assert found("*/a.png") == ["~/a.png"]
    assert found("~nosuchuser.png") == ["~nosuchuser.png"]


def test_what_cannot_be_looked_at_is_told_of_when_it_is_read(tree, monkeypatch):
    names = [300 * "n" + ".png", "locked/a.png", "loop.png"]
    (tree / "loop.png").symlink_to("loop.png")
    stat = os.stat

    def refuse(path, *rest, **options):  # no permission keeps out root
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *rest, **options)

    monkeypatch.setattr(os, "stat", refuse)
    assert found(*names) == names
    assert "loop.png" in found(".", leave_out=tree / "loop.png")


def test_each_file_is_taken_once(tree):
    assert found("deep", "b.png", "*.png", "deep/er/1.jpg") == [
        *("deep/2.tiff", "deep/er/1.jpg", "b.png")
    ]


@pytest.mark.parametrize(
    "name, match",
    [("empty", "^empty: no images in this folder$"), ("*.bmp", r"^\*.bmp: no image")],
)
def test_nothing_there(tree, name, match):
    with pytest.raises(UserError, match=match):
        find_images([name])


def test_a_folder_that_may_not_be_read_is_told(tree, monkeypatch):
    if os.geteuid():
        (tree / "deep").chmod(0)
    else:  # whom no permission keeps out
        scan = os.scandir

        def refuse(path):
            if str(path).endswith("deep"):
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
    told = []
    names = found(".", on_error=told.append)
    (tree / "deep").chmod(0o700)
    assert names == [name for name in EVERYTHING if "deep" not in name]
    assert [error.strerror for error in told] == ["Permission denied"]
