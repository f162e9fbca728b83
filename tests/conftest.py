"""Eight CPU devices, and a compilation cache shared by all the tests."""

import gc
import os
import pathlib
import types
from collections.abc import Iterator

# JAX reads these when it is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What TensorFlow's libraries log of errors that a test provokes.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
root = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Of the TPU compiler: least of what makes programs faster.
os.environ.setdefault("JAX_OPTIMIZATION_LEVEL", "O0")

import jax  # noqa: E402
import pytest  # noqa: E402
from quicker import ROUGH, spare_the_collector  # noqa: E402

# XLA reads its flags once, when the first device starts.
flags = {"xla_force_host_platform_device_count": 8} | ROUGH
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", "")]
    + [
        f"--{name}={value}"
        for name, value in flags.items()
        if name not in os.environ.get("XLA_FLAGS", "")
    ]
)

# Files that take longest: begun last, one of them would be waited for alone.
FIRST = (
    *("test_pods", "test_train", "test_notebooks", "test_published", "test_networks"),
    *("test_wheel", "test_formulations", "test_segmentation", "test_devices"),
    *("test_kills", "test_habits", "test_python_blocks", "test_batches", "test_plan"),
    *("test_faults", "test_tokens", "test_scripts", "test_fpn", "test_site"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Makes warnings of the helper modules errors: see setup.cfg."""
    for path in (root / "tests" / "helpers").glob("*.py"):
        config.addinivalue_line("filterwarnings", f"error:::{path.stem}$")


# First, so that `-m` selects by the marker.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that use PyTorch, and puts the longest files first.

    Within a file the order stays.
    """
    for item in items:
        if "torch" in item.fixturenames:
            item.add_marker("torch")

    def place(item: pytest.Item) -> int:
        return FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST)

    items.sort(key=place)


def pytest_collection_finish():
    """Begins the tests without what to import them has left behind."""
    gc.collect()
    spare_the_collector()


@pytest.fixture
def well_compiled() -> Iterator[None]:
    """For what is equal to the bit only when compiled as usual."""
    _compile_quickly(False)
    yield
    _compile_quickly(True)


def _compile_quickly(value: bool) -> None:
    jax.config.update("jax_disable_most_optimizations", value)
    # What is compiled already would stay.
    jax.clear_caches()


# Most programs here run once: to compile them well takes longer than they run.
_compile_quickly(True)


@pytest.fixture(scope="session")
def torch() -> types.ModuleType:
    """PyTorch, or a skip where it is absent; who uses it has the marker `torch`."""
    reason = "PyTorch is in the extra: pip install -e .[torch]"
    return pytest.importorskip("torch", reason=reason)


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real images, or a skip where it is absent."""
    folder = pathlib.Path(
        os.environ.get("VT_FLAX_TEST_DATA", root.parent / "shared" / "data")
    )
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder} (set VT_FLAX_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> str:
    """A folder in which the digits dataset is prepared."""
    from vt_flax.data.sources import open_source

    folder = str(tmp_path_factory.mktemp("tfds"))
    open_source("digits", "train", folder)
    return folder


@pytest.fixture(scope="session")
def digits_tfrecord(tmp_path_factory) -> pathlib.Path:
    """A folder with digits in three TFRecord files a split."""
    import tensorflow_datasets as tfds

    from vt_flax.data.prepare import digits  # noqa: F401, registers the builder

    folder = tmp_path_factory.mktemp("tfrecord")
    tfds.builder("digits", data_dir=str(folder)).download_and_prepare(
        file_format="tfrecord",
        download_config=tfds.download.DownloadConfig(num_shards=3),
    )
    return folder


@pytest.fixture(scope="session")
def small_imagenet(real_data, tmp_path_factory):
    """Small archives in ImageNet's layout."""
    from imagenet_archives import make_small_imagenet

    return make_small_imagenet(
        tmp_path_factory.mktemp("archives"), real_data / "imagenet_samples"
    )


@pytest.fixture(scope="session")
def prepared_imagenet(small_imagenet, tmp_path_factory) -> str:
    """A folder in which TFDS has built imagenet2012 of them."""
    from vt_flax.data.prepare.build import prepare

    folder = str(tmp_path_factory.mktemp("imagenet"))
    prepare("imagenet2012", folder, str(small_imagenet.archives))
    return folder
