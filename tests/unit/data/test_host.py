"""TensorFlow is imported without Keras, which takes seconds, and without GPUs."""

import pathlib
import re
import subprocess
import sys

import pytest

import vt_flax
from vt_flax.data.host import tensorflow

PROGRAM = """
import importlib, importlib.abc, importlib.util, os, sys, traceback
places = []

class Recorder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tensorflow":
            stack = traceback.extract_stack()
            places.append(any("vt_flax/data/host.py" in f.filename for f in stack))

sys.meta_path.insert(0, Recorder())
for name in ("build", "convert"):
    importlib.import_module("vt_flax.data.prepare." + name)
from vt_flax.data.imagenet import class_names
from vt_flax.data.sources import tfds_builder

class_names()
tfds_builder("digits")
for name in ("keras", "sklearn"):
    print(name, name in sys.modules)
print("legacy", "TF_USE_LEGACY_KERAS" in os.environ)
print("host", places)
from tensorflow.python.eager import context
print("started", context.context()._context_handle is not None)
print("found", importlib.util.find_spec("tensorflow.keras").origin)
"""


@pytest.mark.slow
def test_tensorflow_comes_through_host_without_keras_and_starts_no_device():
    """scikit-learn is not imported either, and Keras stays usable."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert found.pop("found").endswith("keras/_tf_keras/keras/__init__.py")
    assert found.pop("host") == "[True]"
    assert found.pop("started") == "False"
    assert found == {"keras": "False", "sklearn": "False", "legacy": "False"}


def test_only_host_imports_tensorflow():
    """TFDS imports it late; its modules are imported where `host` has been before."""
    package = pathlib.Path(vt_flax.__file__).parent
    direct = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) tensorflow\b(?!_)", path.read_text(), re.M)
    ]
    assert direct == ["data/host.py"]


@pytest.fixture
def with_gpu(monkeypatch):
    """TensorFlow as it is in a new process of a machine with a GPU."""
    tensorflow()
    from tensorflow.python.eager import context

    found = [b"/physical_device:CPU:0", b"/physical_device:GPU:0"]
    monkeypatch.setattr(context.pywrap_tfe, "TF_ListPhysicalDevices", lambda: found)
    monkeypatch.setattr(context, "_context", context.Context())
    tensorflow.cache_clear()
    return context.context()


def test_gpus_are_hidden_from_tensorflow(with_gpu, capsys):
    assert [d.device_type for d in with_gpu.get_visible_devices()] == ["CPU", "GPU"]
    tf = tensorflow()
    assert tf.config.get_visible_devices("GPU") == []
    assert len(tf.config.get_visible_devices("CPU")) == 1
    assert capsys.readouterr().err == ""
