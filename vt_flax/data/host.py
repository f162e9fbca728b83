"""TensorFlow, as the host's reader and decoder of images and nothing else."""

import contextlib
import ctypes
import functools
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

# Its libraries log what they do, of no concern to a user; set to 0, everything is told.
# JAX sets the same, where it is imported first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

# glibc's mallopt parameters (malloc.h), and a size beyond any image.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP = 1 << 30


@functools.cache
def tensorflow() -> types.ModuleType:
    """Imports TensorFlow without its messages, and hides all GPUs from it.

    It is imported where it is first needed, for it takes seconds.
    """
    # Its warnings are of its own queues, such as one that is closed while waited for.
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    visible = False
    with _quiet(), _without_keras():
        import tensorflow as tf

        # Else it would take the GPU memory that JAX computes in.
        try:
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:
            visible = True
    if visible:
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
    """Keeps TensorFlow from rewriting a function that it traces.

    It would turn `if` and `for` over tensors into operations. Ours have none, and to
    read and rewrite their source takes half a second of each start.
    """
    return tensorflow().autograph.experimental.do_not_convert(function)


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Keeps TensorFlow from importing Keras at once: half of its own import.

    It would do so for Keras's optimizers in SavedModels. Told to take the legacy
    package, it looks for that, and goes on where it is not installed. `tf.keras` is
    imported where it is first used, and is the present one, as ever.
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
    """Drops what TensorFlow's libraries print of their start, about GPUs we don't use.

    They do so before any log level counts.
    """
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
    """Tells glibc to keep the memory of freed images for the next ones.

    By default it hands large blocks back to the system at once, and each image is paid
    for again in page faults: measured, a third of what reading a record costs.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(_M_TRIM_THRESHOLD, _KEEP)
    mallopt(_M_MMAP_THRESHOLD, _KEEP)
    mallopt(_M_TOP_PAD, 1 << 26)
