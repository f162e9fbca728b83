"""Features of a TFDS dataset that hold images and labels, and streams of sums."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from image_files import encode
from PIL import Image

from vt_flax.data.segmentation_sources import TFDSPairs
from vt_flax.data.sources import open_configured, open_source, tfds_builder
from vt_flax.errors import UserError
from vt_flax.plan.cases import find_facts
from vt_flax.training.config import load_config
from vt_flax.training.tasks import task_of

COUNT = 12
CONFIG = "configs/quickstart.py"


def filled(*color):
    return encode(Image.new("RGB" if len(color) > 1 else "L", (4, 4), color))


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def folder(request, tmp_path_factory):
    """A dataset of two images, two labels and a mask for each example."""
    folder = tmp_path_factory.mktemp(request.param)
    image = tfds.features.Image(shape=(4, 4, 3), encoding_format="png")
    features = {
        "image": image,
        "closeup": image,
        "mask": tfds.features.Image(shape=(4, 4, 1), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["ant", "bee", "cat", "dog"]),
        "coarse_label": tfds.features.ClassLabel(names=["insect", "mammal"]),
        "count": np.int64,
    }

    def example(i):
        return {
            **{"image": filled(i, 0, 0), "closeup": filled(i, 200, 0)},
            **{"mask": filled(i % 2), "label": i % 4, "coarse_label": i % 4 // 2},
            "count": i,
        }

    tfds.dataset_builders.store_as_tfds_dataset(
        name="zoo",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            "train": [(i, example(i)) for i in range(COUNT)],
            "test": [(i, example(i)) for i in range(COUNT, COUNT + 4)],
            "unlabeled": [(0, example(0) | {"label": -1})],
        },
        data_dir=str(folder),
        file_format=request.param,
    )
    return str(folder)


def read(source):
    """Returns red, green and label of each example, in the order of red."""
    if hasattr(source, "read"):
        pairs = [(one.image, one.label) for one in source.read(range(len(source)))]
    else:
        stream, count = source.stream(None, 0, 1, 1)
        pairs = [(image, label) for _, image, label in stream.as_numpy_iterator()]
        assert len(pairs) == count
    found = []
    for image, label in pairs:
        red, green, _ = Image.open(io.BytesIO(image)).getpixel((0, 0))
        found.append((red, green, int(label)))
    return sorted(found)


@pytest.mark.parametrize(
    "image, label, green, names",
    [
        ("", "", 0, ("ant", "bee", "cat", "dog")),
        ("", "coarse_label", 0, ("insect", "mammal")),
        ("closeup", "", 200, ("ant", "bee", "cat", "dog")),
        ("closeup", "coarse_label", 200, ("insect", "mammal")),
    ],
)
def test_features_are_chosen(folder, image, label, green, names):
    changes = {"name": "zoo", "data_dir": folder}
    changes |= {"image_feature": image, "label_feature": label}
    words = [f"--config.data.{key}={value}" for key, value in changes.items()]
    config = load_config(CONFIG, words)
    source = open_configured(config.data, "train")
    assert source.class_names == names
    each = 4 // len(names)
    assert read(source) == [(i, green, i % 4 // each) for i in range(COUNT)]
    assert find_facts(config).classes == len(names)
    # A run that goes on notices another choice.
    default = open_source("zoo", "train", folder)
    assert (source.identity() == default.identity()) == (image == label == "")


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"label_feature": "coarse"},
            "'zoo' has no ClassLabel feature 'coarse' .data.label_feature.; it has "
            "coarse_label, label$",
        ),
        # One of another kind.
        ({"label_feature": "count"}, "no ClassLabel feature 'count'"),
        (
            {"image_feature": "closup"},
            "no Image feature 'closup' .data.image_feature.; it has closeup, image, m",
        ),
    ],
)
def test_unknown_features(folder, options, message):
    with pytest.raises(UserError, match=message):
        open_source("zoo", "train", folder, **options)


def test_an_evaluation_split_without_labels_is_refused_before_training(folder):
    words = ["--config.data.name=zoo", f"--config.data.data_dir={folder}"]
    config = load_config(CONFIG, [*words, "--config.data.eval_split=unlabeled"])
    if "tfrecord" in folder:
        pytest.skip("a stream is not read before it is used")
    with pytest.raises(UserError, match="unlabeled, example 0: label -1 is outside"):
        task_of(config).open_source(config, "unlabeled")
    task_of(config).open_source(config, "train")


def test_class_folders_have_no_features(tmp_path):
    with pytest.raises(UserError, match="folder:.* has no features: leave"):
        open_source(f"folder:{tmp_path}", "all", label_feature="x")


def test_features_of_segmentation(folder):
    builder = tfds_builder("zoo", folder)
    if builder.info.file_format.value != "array_record":
        pytest.skip("masks need random access")

    def opened(**options):
        return TFDSPairs(builder, "zoo", "train+test", num_classes=2, **options)

    for chosen, green in (("closeup", 200), ("image", 0), ("", 0)):
        source = opened(image_feature=chosen)
        images = [one.image for one in source.read(range(len(source)))]
        assert sorted(images) == sorted(filled(i, green, 0) for i in range(COUNT + 4))
    assert opened(image_feature="closeup").identity() != opened().identity()
    with pytest.raises(UserError, match="'clos' must name one of .*: closeup, image"):
        opened(image_feature="clos")


@pytest.mark.parametrize("split", ["train[:3]+test[50%:]", "train+test"])
def test_sums_of_splits_are_read_once(folder, split):
    source = open_source("zoo", split, folder)
    counts = {"train[:3]+test[50%:]": 5, "train+test": 16}
    found = read(source)
    assert len(source) == len(found) == len({*found}) == counts[split]
    assert all(label == red % 4 for red, _, label in found)
    if not hasattr(source, "read"):  # shares of processes
        parts = [source.stream(None, part, 3, 1) for part in range(3)]
        names = [name for stream, _ in parts for name, *_ in stream.as_numpy_iterator()]
        assert len({*names}) == len(names) == sum(n for _, n in parts) == len(source)


def test_slices_of_a_dataset_that_is_not_shuffled_are_noted(folder, monkeypatch):
    assert not any(
        "shuffl" in note for note in open_source("zoo", "test", folder).notes
    )
    info = tfds.core.DatasetInfo
    monkeypatch.setattr(info, "disable_shuffling", property(lambda self: True))
    note, *_ = open_source("zoo", "train[:50%]", folder).notes
    assert "without shuffling: classes may be missing in train[:50%]" in note
    notes = open_source("zoo", "train", folder).notes
    assert not any("without shuffling" in note for note in notes)
