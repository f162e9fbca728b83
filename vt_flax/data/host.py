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
    """Imports TensorFlow without its log messages, and hides all GPUs from it.

    It is imported where it is first needed, for it takes seconds.
    """
    # Its warnings are about datasets that are closed early, and errors that we catch.
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    has_gpu = False
    with _quiet(), _without_keras():
        import tensorflow as tf

        try:
            # Else it would take the GPU memory that JAX computes in.
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:
            has_gpu = True
    if has_gpu:
        # As in a notebook that has computed with TensorFlow before.
        print(
            "note: TensorFlow has started with a GPU in this process, and keeps memory "
            "that JAX then lacks: restart, and hide it before TensorFlow computes, by "
            "tf.config.set_visible_devices([], 'GPU')",
            file=sys.stderr,
        )
    _keep_memory()
    return tf


def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps TensorFlow from rewriting `if` and `for` of a function that it traces.

    Ours have none over tensors, and reading and rewriting their source takes half a
    second of each start.
    """
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
