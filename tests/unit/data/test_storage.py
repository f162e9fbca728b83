"""Folders and buckets: errors give the right reason.

The errors are TensorFlow's own, with the texts that its client of Google Cloud Storage
gives for the answers of a server.
"""

import contextlib
import http.server
import os
import shutil
import sys
import threading

import pytest
import tensorflow as tf
from ml_collections import ConfigDict
from PIL import Image

from vt_flax.cli import prepare_data, startup, train
from vt_flax.data import storage
from vt_flax.data.batches import train_batches
from vt_flax.data.sources import open_source
from vt_flax.data.storage import UnreachableError, is_folder, storage_errors
from vt_flax.errors import UserError
from vt_flax.training.config import resolve

ERRORS = tf.errors
REQUEST = "Error executing an HTTP request: "
READING = "\n\t when reading metadata of gs://bucket/data"


def answer(code, message):
    """Returns what TensorFlow says of a server's answer."""
    body = (
        '{\n "error": {\n  "code": %d,\n  "message": "%s",\n  "errors": [\n   {\n    '
        '"message": "%s",\n    "domain": "global"\n   }\n  ]\n }\n}'
    )
    body = body % (code, message, message)
    return f"{REQUEST}HTTP response code {code} with body '{body}'{READING}"


def raised(kind, message):
    return kind(None, None, message)


NO_BUCKET = raised(
    ERRORS.NotFoundError, answer(404, "The specified bucket does not exist.")
)
NO_FOLDER = raised(
    ERRORS.NotFoundError, "The specified path gs://bucket/data was not found."
)
DENIED = "me@a.org does not have storage.objects.get access (or it may not exist)."
NO_PERMISSION = raised(ERRORS.PermissionDeniedError, answer(403, DENIED))
LOST = (
    f"All 10 retry attempts failed. The last failure: {REQUEST}libcurl code 7 meaning "
    "'Could not connect to server', error details: Failed to connect to proxy port 9"
)
NO_NETWORK = raised(ERRORS.AbortedError, LOST + READING)
BUSY = raised(ERRORS.AbortedError, answer(503, "Backend Error"))


@pytest.fixture
def bucket(monkeypatch):
    """Lets TensorFlow raise an error for whatever is asked of a bucket."""

    def failing(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(storage, "_check_connection", lambda path: None)
        for name in ("stat", "exists", "listdir", "glob", "GFile"):
            monkeypatch.setattr(tf.io.gfile, name, fail)

    return failing


CANNOT, REFUSED = "gs://bucket/data: cannot be read (", "no permission to read it; log "
LOST_ALL = "gs://bucket/data: the network or the storage cannot be reached ("
REASONS = [
    (NO_BUCKET, CANNOT, "The specified bucket does not exist."),
    (
        raised(ERRORS.NotFoundError, "The specified bucket gs://bucket was not found."),
        CANNOT,
        "The specified bucket gs://bucket was not found.)",
    ),
    (NO_PERMISSION, f"gs://bucket/data: {REFUSED}", DENIED),
    (
        raised(ERRORS.PermissionDeniedError, answer(401, "Anonymous caller.")),
        f"gs://bucket/data: {REFUSED}",
        "Anonymous caller.",
    ),
    (NO_NETWORK, LOST_ALL, "Failed to connect to proxy port 9"),
    (
        raised(
            ERRORS.FailedPreconditionError,
            f"{REQUEST}libcurl code 6 meaning 'Could not resolve hostname', error "
            f"details: Could not resolve host: www.googleapis.com{READING}",
        ),
        LOST_ALL,
        "Could not resolve host: www.googleapis.com",
    ),
    (BUSY, LOST_ALL, "Backend Error"),
    (
        raised(ERRORS.InvalidArgumentError, "GCS path doesn't contain a bucket name"),
        CANNOT,
        "GCS path doesn't contain a bucket name)",
    ),
    (
        PermissionError(13, "Permission denied", "/a/b"),
        "/a/b: ",
        "/a/b: Permission denied",
    ),
]


@pytest.mark.parametrize("error, start, reason", REASONS)
@pytest.mark.parametrize("name", ["folder:gs://bucket/data", "mnist", "no_such_one"])
def test_a_bucket_is_refused_by_its_reason(name, error, start, reason, bucket):
    bucket(error)
    with pytest.raises(UserError) as refusal:
        open_source(name, "train", "gs://bucket/data")
    message = str(refusal.value)
    assert message.startswith(start) and reason in message and "\n" not in message
    assert isinstance(refusal.value, UnreachableError) == (start == LOST_ALL)


def test_a_folder_that_is_not_in_a_bucket(bucket):
    bucket(NO_FOLDER)
    with pytest.raises(UserError, match="^folder:gs://bucket/data: there is no such"):
        open_source("folder:gs://bucket/data", "all")


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_a_dataset_in_a_bucket_is_prepared_elsewhere(name, monkeypatch):
    """`prepare_data` refuses buckets, so it is not advised for one."""
    monkeypatch.setattr(storage, "_check_connection", lambda path: None)
    folder = type("Status", (), {"is_directory": True})
    monkeypatch.setattr(tf.io.gfile, "stat", lambda _: folder)
    for method, found in (("exists", False), ("isdir", False), ("glob", [])):
        monkeypatch.setattr(tf.io.gfile, method, lambda *_, found=found: found)
    with pytest.raises(UserError) as refusal:
        open_source(name, "train", "gs://bucket/data")
    message = str(refusal.value)
    assert message.startswith(f"dataset '{name}' is not prepared in gs://bucket/data/")
    assert "--data_dir gs://" not in message
    assert f"`vt_flax prepare_data {name} --data_dir DATA`" in message
    assert "`gcloud storage cp -r DATA/* gs://bucket/data/`" in message
    with pytest.raises(UserError, match="buckets are not supported yet"):
        prepare_data.main([name, "--data_dir", "gs://bucket/data"])


def test_another_kind_of_storage():
    for place in ("s3://b/x", "hdfs://b/x", "az://b/x", "https://a.org/x", "file:///x"):
        for name in (f"folder:{place}", "mnist"):
            with pytest.raises(UserError, match=f"^{place}: data is read from local"):
                open_source(name, "train", place)


class Refusing(http.server.BaseHTTPRequestHandler):
    """A proxy that lets nobody through."""

    def do_CONNECT(self):  # noqa: N802
        self.send_error(403, "Not allowed")

    def log_message(self, *_):
        pass


def test_without_a_network_a_start_ends_at_once(monkeypatch):
    """Before TensorFlow's client tries ten times, for minutes."""
    monkeypatch.setattr(tf.io.gfile, "stat", lambda _: pytest.fail("asked TensorFlow"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UnreachableError, match="^gs://b/x: .*403 Not allowed"):
            is_folder("gs://b/x")
    # Nobody listens there any more.
    with pytest.raises(UnreachableError, match="^gs://b/x: .*refused"):
        is_folder("gs://b/x")


def test_local_places(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (
        ("file", "Not a directory"),
        ("file/in", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        (300 * "n", "File name too long"),
    ):
        for dataset in (f"folder:{tmp_path}/{name}", "digits"):
            with pytest.raises(UserError, match=f"^{tmp_path}/{name}: {reason}$"):
                open_source(dataset, "all", f"{tmp_path}/{name}")
    assert is_folder(tmp_path) and not is_folder(tmp_path / "none")
    with pytest.raises(UserError, match="write the folder's path"):
        open_source("folder:", "all")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    """It is there, so nobody is to be sent to prepare it."""

    def refuse(path):  # whom no permission keeps out
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    for name in (f"folder:{tmp_path}", "mnist"):
        with pytest.raises(UserError, match=f"^{tmp_path}: Permission denied$"):
            open_source(name, "all", str(tmp_path))


def test_home_folders_of_datasets(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", os.path.dirname(digits))
    monkeypatch.chdir(tmp_path)
    name = os.path.basename(digits)
    assert len(open_source("digits", "test", f"~/{name}")) == 360
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrapped_is_found():
    """TFDS and etils raise errors of their own from those of a file system."""
    for outer in (RuntimeError("Failed to construct"), OSError("Failed"), ValueError()):
        with pytest.raises(UserError, match="^place: .*The specified bucket does not"):
            with storage_errors("place"):
                raise outer from NO_BUCKET
    with pytest.raises(UserError, match="^place: .*The specified bucket does not"):
        with storage_errors("place"):
            raise FileNotFoundError(NO_BUCKET)
    with pytest.raises(UserError, match="^place: no name, no number"):
        with storage_errors("place"):
            raise OSError("no name, no number\nsecond line")
    with pytest.raises(KeyError), storage_errors("place"):
        raise KeyError("a bug")


# What happens to files during a run.


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


def test_a_missing_file_of_a_dataset_is_reported_before_a_run(copy):
    data_dir, file = copy
    file.unlink()
    with pytest.raises(UserError, match=f"^{file} is missing .1 of the 1 files"):
        open_source("digits", "test[:50%]", data_dir)
    assert len(open_source("digits", "train", data_dir)) == 1437


def test_a_damaged_file_of_a_dataset_is_named(copy):
    data_dir, file = copy
    source = open_source("digits", "test", data_dir)
    os.truncate(file, 1000)
    with pytest.raises(UserError, match=f"^digits test, example .*, in {file}: cannot"):
        train_on(source)


def test_a_damaged_description_of_a_dataset(copy):
    data_dir, file = copy
    info = file.parent / "dataset_info.json"
    info.write_text("{")
    with pytest.raises(UserError, match="dataset 'digits' in .*Failed to load JSON"):
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
        raise NO_NETWORK

    monkeypatch.setattr(storage, "open", fail, raising=False)
    with pytest.raises(UnreachableError, match="cannot be reached .*Failed to connect"):
        train_on(source, on_error=on_error, readers=1)
    assert len(tried) == 1


def test_a_lost_bucket_of_a_dataset_ends_a_run(digits, monkeypatch):
    """By what array_record's client says after a quarter of an hour."""
    source, tried = open_source("digits", "test", digits), []

    class Lost:
        def __len__(self):
            return 360

        def __getitems__(self, indices):
            tried.append(indices)
            raise RuntimeError("Retry policy exhausted, with a last message of CURL 6")

    monkeypatch.setattr(source, "_remote", True)
    lost = Lost()
    lost.data_source = lost
    monkeypatch.setattr(source, "_data", lost)
    with pytest.raises(UnreachableError, match="^digits test, example .*, in .*CURL 6"):
        train_on(source, on_error="skip", readers=1)
    assert len(tried) == 1


def test_the_command_ends_with_2_and_one_line(bucket, monkeypatch, capsys):
    bucket(NO_PERMISSION)
    words = ["train", "--config", "configs/quickstart.py", "--workdir", "/none/run"]
    words += ["--config.data.data_dir=gs://bucket/data"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        startup.run(train.main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: gs://bucket/data: no permission to read it")
    assert error.count("\n") == 1
