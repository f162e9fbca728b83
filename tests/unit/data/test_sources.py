"""TFDS datasets: the embedded digits, features, splits, storage, and their errors."""

import contextlib
import io
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from image_files import encode
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_digits

from vt_flax.data import storage
from vt_flax.data.batches import train_batches
from vt_flax.data.host import tensorflow
from vt_flax.data.pillow_decoder import decode_with_pillow as decode
from vt_flax.data.sources import open_configured, open_source
from vt_flax.data.storage import UnreachableError, is_folder
from vt_flax.errors import UserError
from vt_flax.plan.cases import find_facts
from vt_flax.training.config import load_config, resolve
from vt_flax.training.tasks import task_of

# The embedded digits.


def bilinear(small, side):
    """Half-pixel bilinear interpolation of (n, h, w) to (n, side, side), float64."""
    for axis in (1, 2):
        size = small.shape[axis]
        place = (np.arange(side) + 0.5) * size / side - 0.5
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(3)])
        below = np.take(small, np.clip(low, 0, size - 1), axis)
        above = np.take(small, np.clip(low + 1, 0, size - 1), axis)
        small = below * (1 - share) + above * share
    return small


def test_digits_are_scikit_learns(digits):
    """TFDS shuffles, so each stored image is matched to the nearest one expected."""
    first, last = 1437, 1797
    source = open_source("digits", "test", digits)
    assert len(source) == last - first
    assert source.class_names == tuple("0123456789")
    examples = source.read(range(len(source)))
    stored = np.stack([np.asarray(decode(example.image)) for example in examples])
    assert stored.shape[1:] == (32, 32, 3) and stored.dtype == np.uint8
    assert (stored == stored[..., :1]).all()
    ours = stored[..., 0].astype(np.float64)

    data = load_digits()
    theirs = bilinear(np.rint(data.images[first:last] * 255 / 16), 32)
    a, b = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
    distance = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    match = distance.argmin(1)
    assert sorted(match) == list(range(last - first))
    assert np.abs(ours - theirs[match]).max() <= 1
    found = [example.label for example in examples]
    np.testing.assert_array_equal(found, data.target[first:last][match])


def test_examples_may_be_read_in_any_order(digits):
    source = open_source("digits", "test", digits)
    whole = source.read(range(20))
    some = source.read([7, 0, 7])
    assert [e.image for e in some] == [whole[i].image for i in (7, 0, 7)]
    # And by TensorFlow.
    records, classes, orientations = source.fetch([7, 0, 7])
    assert orientations == [1, 1, 1]
    for example, record, label in zip(some, records, classes, strict=True):
        image, label = source.parse(record, label)
        assert (image.numpy(), int(label)) == (example.image, example.label)


@pytest.mark.parametrize(
    "split, parts, count",
    [
        ("test[:90%]", ["test[:50%]", "test[50%:90%]"], 324),
        ("train[:10%] + test[-5:]", ["train[:10%]", "test[-5:]"], 149),
        ("all", ["train", "test"], 1797),
    ],
)
def test_sums_and_slices_of_splits(digits, split, parts, count):
    """Each in its order, by random access."""
    whole = open_source("digits", split, digits)
    some = [open_source("digits", part, digits) for part in parts]
    assert len(whole) == sum(map(len, some)) == count
    first, last = some[0], some[-1]
    assert whole.read([0, len(first) - 1]) == first.read([0, len(first) - 1])
    assert whole.read([count - len(last), count - 1]) == last.read([0, len(last) - 1])
    members = np.concatenate([part.members() for part in some])
    np.testing.assert_array_equal(whole.members(), members)
    assert len(np.unique(members)) == len(members)


@pytest.mark.parametrize(
    "split",
    [
        "test[",
        "test[:x]",
        "test[:0]",
        "test[:300%]",
        "test[80%:20%]",
        "all[:50%]",
        "tset",
    ],
)
def test_a_bad_split(digits, split):
    with pytest.raises(UserError, match=re.escape(split)):
        open_source("digits", split, digits)


@pytest.mark.parametrize(
    "name, message",
    [
        ("cifar11", "'cifar11': not known to TFDS.*did you mean cifar1"),
        ("mnist:99.0.0", "'mnist:99.0.0': Failed to construct"),
        ("/no/flowers", "'/no/flowers': .*for images in class folders write folder:"),
        (
            "mnist",
            "'mnist' is not prepared in .*`vt_flax prepare_data mnist --data_dir ",
        ),
    ],
)
def test_a_dataset_that_is_not_there(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        open_source(name, "train", str(tmp_path))


# Features of a dataset of two images, two labels and a mask for each example.

COUNT = 12
CONFIG = "configs/quickstart.py"


def filled(*color):
    return encode(Image.new("RGB" if len(color) > 1 else "L", (4, 4), color))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
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

    folder = str(tmp_path_factory.mktemp("zoo"))
    tfds.dataset_builders.store_as_tfds_dataset(
        name="zoo",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            "train": [(i, example(i)) for i in range(COUNT)],
            "unlabeled": [(0, example(0) | {"label": -1})],
        },
        data_dir=folder,
        file_format="array_record",
    )
    return folder


@pytest.mark.parametrize("image, green", [("", 0), ("closeup", 200)])
@pytest.mark.parametrize(
    "label, names",
    [("", ("ant", "bee", "cat", "dog")), ("coarse_label", ("insect", "mammal"))],
)
def test_features_are_chosen(zoo, image, green, label, names):
    changes = {"name": "zoo", "data_dir": zoo}
    changes |= {"image_feature": image, "label_feature": label}
    words = [f"--config.data.{key}={value}" for key, value in changes.items()]
    config = load_config(CONFIG, words)
    source = open_configured(config.data, "train")
    assert source.class_names == names
    each = 4 // len(names)
    found = sorted(
        (*Image.open(io.BytesIO(one.image)).getpixel((0, 0))[:2], one.label)
        for one in source.read(range(COUNT))
    )
    assert found == [(i, green, i % 4 // each) for i in range(COUNT)]
    assert find_facts(config).classes == len(names)
    # A resumed run notices another choice.
    default = open_source("zoo", "train", zoo)
    assert (source.identity() == default.identity()) == (image == label == "")


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"label_feature": "coarse"},
            "'zoo' has no ClassLabel feature 'coarse' .data.label_feature.; it has "
            "coarse_label, label$",
        ),
        ({"label_feature": "count"}, "no ClassLabel feature 'count'"),
        (
            {"image_feature": "closup"},
            "no Image feature 'closup' .data.image_feature.; ",
        ),
    ],
)
def test_unknown_features(zoo, options, message):
    with pytest.raises(UserError, match=message):
        open_source("zoo", "train", zoo, **options)
    with pytest.raises(UserError, match="folder:.* has no features: leave"):
        open_source(f"folder:{zoo}", "all", **options)


def test_an_evaluation_split_without_labels_is_refused_before_training(zoo):
    words = ["--config.data.name=zoo", f"--config.data.data_dir={zoo}"]
    config = load_config(CONFIG, [*words, "--config.data.eval_split=unlabeled"])
    with pytest.raises(UserError, match="unlabeled, example 0: label -1 is outside"):
        task_of(config).open_source(config, "unlabeled")
    task_of(config).open_source(config, "train")


def test_slices_of_a_dataset_that_is_not_shuffled_are_noted(zoo, monkeypatch):
    assert not open_source("zoo", "train[:50%]", zoo).notes
    info = tfds.core.DatasetInfo
    monkeypatch.setattr(info, "disable_shuffling", property(lambda self: True))
    (note,) = open_source("zoo", "train[:50%]", zoo).notes
    assert "without shuffling: classes may be missing in train[:50%]" in note


# Storage.


def test_local_places(tmp_path, digits, monkeypatch):
    (tmp_path / "file").write_text("")
    for name, reason in (
        ("file", "Not a directory"),
        (300 * "n", "File name too long"),
    ):
        for dataset in (f"folder:{tmp_path}/{name}", "digits"):
            with pytest.raises(UserError, match=f"^{tmp_path}/{name}: {reason}$"):
                open_source(dataset, "all", f"{tmp_path}/{name}")
    assert is_folder(tmp_path) and not is_folder(tmp_path / "none")
    with pytest.raises(UserError, match="write the folder's path"):
        open_source("folder:", "all")
    with pytest.raises(UserError, match="^s3://b/x: cannot be read .*'s3' not impl"):
        open_source("folder:s3://b/x", "train")
    monkeypatch.setenv("HOME", os.path.dirname(digits))
    assert len(open_source("digits", "test", f"~/{os.path.basename(digits)}")) == 360


def raised(kind, message):
    return kind(None, None, message)


@pytest.mark.parametrize("name", ["folder:gs://bucket/data", "mnist"])
@pytest.mark.parametrize(
    "kind, message, is_lost",
    [
        ("PermissionDeniedError", "me does not have storage.objects.get access", False),
        ("AbortedError", "All 10 retry attempts failed", True),
        ("FailedPreconditionError", "libcurl code 6: could not resolve host", True),
    ],
)
def test_a_bucket_is_refused_by_its_reason(name, kind, message, is_lost, monkeypatch):
    tf = tensorflow()

    def fail(*_):
        raise raised(getattr(tf.errors, kind), f"{message}\n  when reading")

    monkeypatch.setattr(tf.io.gfile, "stat", fail)
    with pytest.raises(UserError) as refusal:
        open_source(name, "train", "gs://bucket/data")
    assert str(refusal.value).startswith(f"gs://bucket/data: cannot be read ({message}")
    assert "\n" not in str(refusal.value)
    assert isinstance(refusal.value, UnreachableError) == is_lost


@pytest.fixture
def copy(digits, tmp_path):
    """A copy of the digits, and the file of its test images."""
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob("digits/*/digits-test.*")
    return str(tmp_path), file


def train_on(source, **options):
    config = resolve(ConfigDict({"data": {"image_size": 8, **options}})).data
    batches = train_batches(source, config, seed=0, batch=8, first=0, last=2)
    with contextlib.closing(batches):
        return list(batches)


def test_damaged_files_of_a_dataset_are_named(copy):
    data_dir, file = copy
    source = open_source("digits", "test", data_dir)
    os.truncate(file, 1000)
    with pytest.raises(UserError, match=f"^digits test, example .*, in {file}: cannot"):
        train_on(source)
    file.unlink()
    with pytest.raises(UserError, match=f"^{file} is missing .1 of the 1 files"):
        open_source("digits", "test[:50%]", data_dir)
    info = file.parent / "dataset_info.json"
    info.write_text("{")
    with pytest.raises(UserError, match="dataset 'digits': .*Failed to load JSON"):
        open_source("digits", "test", data_dir)
    info.unlink()
    with pytest.raises(UserError, match="holds no finished dataset: move it away"):
        open_source("digits", "test", data_dir)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_lost_network_ends_a_run_at_once(on_error, tmp_path, monkeypatch):
    """No example is bad then, and each further try would take minutes."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(20):
            Image.new("L", (9, 9)).save(tmp_path / label / f"{i}.png")
    source = open_source(f"folder:{tmp_path}", "all")
    tried = []

    def fail(file, mode):
        tried.append(file)
        raise raised(tensorflow().errors.AbortedError, "All 10 retry attempts failed")

    monkeypatch.setattr(storage, "open", fail, raising=False)
    with pytest.raises(UnreachableError, match="All 10 retry"):
        train_on(source, on_error=on_error, readers=1)
    assert len(tried) == 1
