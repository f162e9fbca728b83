"""TensorFlow, which only reads and decodes images on the host."""

import contextlib
import ctypes
import functools
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

# Hides what TensorFlow's libraries log of their start; 0 shows everything. JAX sets the
# same, where it is imported first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

# glibc's mallopt parameters (malloc.h), and a size beyond any image.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP = 1 << 30


@functools.cache
def tensorflow() -> types.ModuleType:
    """Imports TensorFlow, which takes seconds, without log messages and GPUs."""
    # Its warnings are about datasets that are closed early, and errors that we catch.
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    with _quiet(), _without_keras():
        import tensorflow as tf

        # Else it would take the GPU memory that JAX computes in. A notebook that has
        # computed with TensorFlow before keeps what it has.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    _keep_memory()
    return tf


def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps AutoGraph from rewriting a function, which takes half a second."""
    return tensorflow().autograph.experimental.do_not_convert(function)


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Keeps TensorFlow from importing Keras, which takes half of its own import.

    It would do so for Keras's optimizers in SavedModels. With this variable it looks
    for the legacy package, and continues where that is not installed. `tf.keras` is
    imported where it is first used, and is the current version as always.
    """
    name = "TF_USE_LEGACY_KERAS"
    if name in os.environ or importlib.util.find_spec("tf_keras"):
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what TensorFlow prints about GPUs before any log level counts."""
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0":
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _keep_memory() -> None:
    """Makes glibc keep the memory of freed images for the next ones.

    By default it returns large blocks to the system at once, and each image pays again
    in page faults: measured, a third of what reading a record costs.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(_M_TRIM_THRESHOLD, _KEEP)
    mallopt(_M_MMAP_THRESHOLD, _KEEP)
    mallopt(_M_TOP_PAD, 1 << 26)
