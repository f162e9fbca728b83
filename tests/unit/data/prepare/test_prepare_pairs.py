"""Datasets of images and masks from small folders in the real layouts."""

import json
import pathlib

import numpy as np
import pytest
from image_files import with_orientation
from pair_trees import (
    SPLITS,
    assert_same,
    draw_image,
    draw_labels,
    make_lip,
    stored,
    write,
)

from vt_flax.data.prepare import build
from vt_flax.errors import UserError


def metadata(builder):
    return dict(builder.info.metadata)


# ADE20K.


def make_ade20k(root):
    """Returns the expected labels by image of each split."""
    root = root / "ADEChallengeData2016"
    expected = {split: {} for split in SPLITS}
    for split, count in SPLITS.items():
        folder = {"train": "training", "validation": "validation"}[split]
        for i in range(count):
            name = f"ADE_{folder[:5]}_{i + 1:08}"
            # Their masks were drawn on the stored images, whatever these say.
            image = write(
                root / f"images/{folder}/{name}.jpg",
                draw_image(i, 40, 30),
                **with_orientation(6 if i == 1 else 1),
            )
            values = draw_labels(i, 40, 30, range(151) if i == 0 else [0, 1, 9, 150])
            write(root / f"annotations/{folder}/{name}.png", values)
            labels = np.where(values == 0, 255, values.astype(int) - 1)
            expected[split][image] = labels
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    lines += [f"{i}\t0.1\t9\t9\t1\tname {i}, other, more " for i in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    return expected


def test_ade20k(tmp_path):
    expected = make_ade20k(tmp_path / "manual")
    builder = build.prepare("ade20k", str(tmp_path / "data"), str(tmp_path / "manual"))
    for split in SPLITS:
        assert_same(stored("ade20k", str(tmp_path / "data"), split), expected[split])
    names = [f"name {i}" for i in range(1, 151)]
    assert metadata(builder) == {"class_names": names}
    lines = build.describe(builder, "ade20k")
    assert "train 5, validation 3 examples, 150 classes" in lines
    assert "--config.data.name=ade20k" in lines


# Look into Person.


def test_lip(tmp_path):
    root = tmp_path / "manual"
    expected = make_lip(root)
    # What a Mac leaves in archives.
    masks = root / "TrainVal_parsing_annotations" / "train_segmentations"
    (masks / "._0_1000.png").write_bytes(b"Mac OS X")
    builder = build.prepare("lip", str(tmp_path / "data"), str(root))
    for split in SPLITS:
        assert_same(stored("lip", str(tmp_path / "data"), split), expected[split])
    names, mirrored = metadata(builder)["class_names"], metadata(builder)["mirrored"]
    assert len(names) == len(mirrored) == 20
    for name, other in zip(names, mirrored, strict=True):
        turned = (
            name.replace("Left", "X").replace("Right", "Left").replace("X", "Right")
        )
        assert names[other] == turned
    assert (names[0], names[4], names[14], names[19]) == (
        *("Background", "Sunglasses", "Left-arm", "Right-shoe"),
    )


# COCO-Stuff.

# Some categories of panoptic_train2017.json, in its order: id, name, is a thing.
CATEGORIES = [
    (1, "person", 1),
    (3, "car", 1),
    (92, "banner", 0),
    (125, "gravel", 0),
    (184, "tree-merged", 0),
    (187, "sky-other-merged", 0),
]


def make_panoptic(root):
    expected = {split: {} for split in SPLITS}
    names = ["things", "banner", "gravel", "tree-merged", "sky-other-merged"]
    for split, count in SPLITS.items():
        folder = {"train": "train2017", "validation": "val2017"}[split]
        annotations = []
        for i in range(count):
            name = f"{i + 1:012}"
            image = write(root / folder / f"{name}.jpg", draw_image(i, 36, 27))
            regions = draw_labels(i, 36, 27, range(7))
            # Region 0 is no segment; two are persons.
            categories = [None, 1, 1, 3, 92, 184, 187]
            ids = [0, 7, 300, 65536 * 9, 256 * 200 + 1, 3226956, 16777215]
            ids = np.asarray(ids) - np.asarray([0, *([i] * 6)])
            pixels = ids[regions]
            channels = [pixels % 256, pixels // 256 % 256, pixels // 65536]
            mask = np.stack(channels, -1).astype(np.uint8)
            write(root / f"annotations/panoptic_{folder}/{name}.png", mask)
            segments = [
                {"id": int(number), "category_id": category}
                for number, category in zip(ids[1:], categories[1:], strict=True)
            ]
            annotations.append({"file_name": f"{name}.png", "segments_info": segments})
            by_region = [255, 0, 0, 0, *map(names.index, (names[1], *names[3:]))]
            expected[split][image] = np.asarray(by_region)[regions]
        content = {
            "annotations": annotations,
            "categories": [
                {"id": number, "name": name, "isthing": thing}
                for number, name, thing in CATEGORIES
            ],
        }
        path = root / "annotations" / f"panoptic_{folder}.json"
        path.write_text(json.dumps(content))
    return names, expected


def test_coco_stuff(tmp_path):
    names, expected = make_panoptic(tmp_path)
    data, manual = str(tmp_path / "data"), str(tmp_path)
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    good = path.read_text()
    for bad, message in (
        (good[:99], "not COCO's panoptic annotations .JSONDecodeError"),
        (good.replace('"category_id": 92', '"category_id": 93'), "KeyError: 93"),
        (good.replace("000000000002.png", "9.png"), "02.png: the panoptic annotations"),
    ):
        path.write_text(bad)
        with pytest.raises(UserError, match=message):
            build.prepare("coco_stuff", data, manual)
    path.rename(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match="panoptic_val2017.json is not there; wanted"):
        build.prepare("coco_stuff", data, manual)
    path.write_text(good)
    builder = build.prepare("coco_stuff", data, manual)
    assert builder.info.full_name == "coco_stuff/stuff54/1.0.0"
    for name in ("coco_stuff", "coco_stuff/stuff54"):
        for split in SPLITS:
            assert_same(stored(name, data, split), expected[split])
    assert metadata(builder) == {"class_names": names}


# Anyone's own pairs.


def make_folder(root, count=4):
    splits = "train", "val"
    expected = {split: {} for split in splits}
    for split in splits:
        for i in range(count):
            place = pathlib.Path(split, "deep" if i == 3 else "", str(i))
            suffix = ("jpg", "png", "JPEG", "bmp")[i]
            file = root / "images" / f"{place}.{suffix}"
            image = write(file, draw_image(len(split) + i, 19 + i, 23))
            values = [0, 1, 2, 255] if split == "train" else [0, 3]
            labels = draw_labels(i, 19 + i, 23, values)
            write(root / "masks" / f"{place}.png", labels)
            expected[split][image] = labels
    return expected


def test_folder_with_splits_and_names(tmp_path):
    expected = make_folder(tmp_path / "manual")
    (tmp_path / "manual" / "classes.txt").write_text("sky\ngrass \ncow\nfar away\n\n")
    data, manual = str(tmp_path / "data"), tmp_path / "manual"
    builder = build.prepare("image_mask_folder", data, str(manual))
    for split in ("train", "val"):
        assert_same(stored("image_mask_folder", data, split), expected[split])
    assert metadata(builder)["class_names"] == ["sky", "grass", "cow", "far away"]
    assert "mirrored" not in metadata(builder)
    assert "4 classes" in build.describe(builder, "image_mask_folder")


def test_a_prepared_folder_stays_as_it_is(tmp_path, capfd):
    """A note says that neither other files nor other options are looked at."""
    data = str(tmp_path / "data")
    make_folder(tmp_path / "one")
    make_folder(tmp_path / "two", count=3)
    build.prepare("image_mask_folder", data, str(tmp_path / "one"))
    capfd.readouterr()
    builder = build.prepare(
        "image_mask_folder", data, str(tmp_path / "two"), ignore_label="none"
    )
    assert builder.info.splits["train"].num_examples == 4
    assert "is already prepared in" in (error := capfd.readouterr().err)
    assert "stays as it is; to make it anew, move it away first" in error
