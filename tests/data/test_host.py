"""What is imported before the first example is read: seconds of every start."""

import subprocess
import sys

PROGRAM = """
import importlib.util, os, sys
from vt_flax.data.sources import tfds_builder

tfds_builder("digits")
for name in ("keras", "sklearn"):
    print(name, name in sys.modules)
print("legacy", "TF_USE_LEGACY_KERAS" in os.environ)
print("found", importlib.util.find_spec("tensorflow.keras").origin)
"""


def test_neither_keras_nor_scikit_learn_is_imported_and_keras_stays_usable():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert told.pop("found").endswith("keras/_tf_keras/keras/__init__.py")
    assert told == {"keras": "False", "sklearn": "False", "legacy": "False"}
