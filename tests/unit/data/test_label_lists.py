"""Folders of images whose classes are in a list, as ImageNet's validation images."""

import pathlib

import pytest
from test_folder_layouts import make, notes, opened

from vt_flax.data.imagenet import class_names
from vt_flax.data.sources import open_source
from vt_flax.errors import UserError

# Images 1 to 8 by their line in Caffe's `val.txt`, which numbers the classes by WordNet
# id, from 0.
CAFFE = (65, 970, 230, 809, 516, 57, 334, 415)


def labels(source):
    """Returns the class of each image by its file name."""
    return {
        pathlib.Path(source.describe(i)).name: source.class_names[example.label]
        for i, example in enumerate(source.read(range(len(source))))
    }


@pytest.mark.parametrize(
    "text",
    [
        "3.jpg,cat\n1.jpg,dog\n2.png,cat\n",
        "3,cat\nval/1,dog\n./2.png,cat",
        "\ufeffid,breed\r\n3,cat\r\n1, dog\r\n\r\n2,cat\r\n",
        'file_name,label,split\n"3.jpg","cat",x\n1.jpg,dog,x\n2.png,cat,x\n',
        "ImageId,PredictionString\n3,cat 8 1 9 2\n1,dog 1 1 2 2 dog 3 3 4 4\n2,cat 1\n",
    ],
)
def test_a_list_beside_a_folder_of_images(tmp_path, text):
    make(tmp_path, *("val/1.jpg val/2.png val/3.jpg val/.x.jpg".split()))
    make(tmp_path, "train/cat/7.jpg", "train/dog/8.jpg")
    (tmp_path / "val.csv").write_text(text, "utf-8", newline="")
    found = {"cat": ["val/2.png", "val/3.jpg"], "dog": ["val/1.jpg"]}
    assert opened(tmp_path, "val") == found and notes(tmp_path, "val") == []
    assert sum(map(len, opened(tmp_path, "train+val").values())) == 5
    assert sum(map(len, opened(tmp_path, "all").values())) == 5
    assert sum(map(len, opened(tmp_path, "val[:2]").values())) == 2
    # The folder of images itself may be named, too.
    assert [*map(len, opened(tmp_path / "val").values())] == [2, 1]


def test_names_of_listed_classes(tmp_path):
    """They are sorted as folders would be, and may be any text."""
    make(tmp_path, *(f"val/{i}.jpg" for i in range(4)))
    text = '0,"great dane, male"\n1,10\n2,9\n3,Ä\n'
    (tmp_path / "val.csv").write_text(text, "utf-8")
    source = open_source(f"folder:{tmp_path}", "val")
    assert source.class_names == ("10", "9", "great dane, male", "Ä")
    assert labels(source) == {
        "0.jpg": "great dane, male",
        "1.jpg": "10",
        "2.jpg": "9",
        "3.jpg": "Ä",
    }


def test_what_a_list_and_its_folder_lack_is_noted(tmp_path):
    make(tmp_path, *(f"val/{i}.jpg" for i in range(5)))
    (tmp_path / "val.csv").write_text("2,a\n3,b\n7,c\n8,c\n9,c")
    source = open_source(f"folder:{tmp_path}", "val")
    assert labels(source) == {"2.jpg": "a", "3.jpg": "b"}
    assert source.class_names == ("a", "b", "c")
    assert source.notes == (
        f"{tmp_path}/val: images left out that have no class: 3",
        f"{tmp_path}/val: images that have a class but are missing: 3",
    )


@pytest.mark.parametrize(
    "text, message",
    [
        (b"7,a\n8,b\n", "val.csv lists none of the 2 images in "),
        (b"", "val.csv lists none of the 2 images in "),
        (b"1,a\n2\n", "val.csv, line 2: expected FILE,CLASS"),
        (b"1,a\n2, \n", "val.csv, line 2: expected FILE,CLASS"),
        (b"1,a\n2,b\n1,b\n", "val.csv, line 3: 1 has two classes"),
        (b"1,a\n2,\xff\n", "val.csv: not a list in CSV "),
        (b'1,a\n2,"\n' + b"x" * 200_000, "val.csv: not a list in CSV "),
        (None, "no split 'val': expected .*, or .*/val.csv with a line FILE"),
    ],
)
def test_lists_that_are_refused(tmp_path, text, message):
    make(tmp_path, "val/1.jpg", "val/2.jpg")
    if text is not None:
        (tmp_path / "val.csv").write_bytes(text)
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{tmp_path}", "val")


def test_imagenets_validation_images_need_no_list(tmp_path):
    names = class_names()
    make(tmp_path, *(f"train/{name}/{name}_1.JPEG" for name in names))
    images = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, len(CAFFE) + 1)]
    make(tmp_path, *(f"val/{image}" for image in images))
    train, val = (
        open_source(f"folder:{tmp_path}", split) for split in ("train", "val")
    )
    assert val.class_names == train.class_names == tuple(names)
    expected = {image: names[i] for image, i in zip(images, CAFFE, strict=True)}
    assert labels(val) == expected
    assert val.notes == (
        f"{tmp_path}/val: the classes are those that ImageNet has published",
        f"{tmp_path}/val: images that have a class but are missing: 49,992",
    )
    # An own list goes before, of some images or all.
    (tmp_path / "val.csv").write_text(f"{images[1]},{names[0]}")
    assert labels(open_source(f"folder:{tmp_path}", "val")) == {images[1]: names[0]}
    # With other images among them, there is no knowing.
    (tmp_path / "val.csv").unlink()
    make(tmp_path, "val/another.JPEG")
    with pytest.raises(UserError, match="val.csv with a line FILE,CLASS"):
        open_source(f"folder:{tmp_path}", "val")
