"""What torchvision, timm and their forerunners call the parts of a ResNet, and we."""

import dataclasses
import re
from collections.abc import Iterable

import numpy as np

from vt_flax.models.resnet import STAGE_SIZES

# Counts of updates, by which PyTorch may average; ours do not.
COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an array goes.

    Attributes:
      path: `params` or `batch_stats`, then the names in the tree of that part.
      kind: `conv`, whose axes are (out, in, height, width) there and (height, width,
        in, out) here; `linear`: (out, in), which may be a 1 x 1 convolution's (out, in,
        1, 1), and (in, out); or `vector`.
    """

    path: tuple[str, ...]
    kind: str

    def ours(self, array: np.ndarray) -> np.ndarray:
        """Returns an array with its axes in our order."""
        if self.kind == "conv":
            return array.transpose(2, 3, 1, 0)
        return array.reshape(array.shape[:2]).T if self.kind == "linear" else array

    def theirs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns a shape of ours with its axes in their order."""
        if self.kind == "conv":
            return (shape[3], shape[2], shape[0], shape[1])
        return shape[::-1] if self.kind == "linear" else shape

    def fits(self, there: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Tells whether an array of theirs, by its shape, is one of ours."""
        wanted = self.theirs(shape)
        return there == wanted or (self.kind == "linear" and there == (*wanted, 1, 1))


_BLOCK = r"layer([1-4])\.(\d+)\."
# torchvision and timm. `layer0.conv1` and `se_module` are Cadene's, whose SE-ResNets
# timm has as legacy_seresnet; `layer0.0` is that of a stem in a Sequential, `se.fc.0`
# that of two linear maps in a row, and `shortcut` that of kuangliu's pytorch-cifar.
_MODULES = [
    (r"(?:layer0\.)?conv1|layer0\.0", "stem/conv", "conv"),
    (r"(?:layer0\.)?bn1|layer0\.1", "stem/norm", "norm"),
    (_BLOCK + r"conv([1-3])", "conv{}", "conv"),
    (_BLOCK + r"bn([1-3])", "norm{}", "norm"),
    (_BLOCK + r"(?:downsample|shortcut)\.0", "shortcut", "conv"),
    (_BLOCK + r"(?:downsample|shortcut)\.1", "shortcut_norm", "norm"),
    (_BLOCK + r"(?:se|se_module)\.(?:fc1|fc\.0)", "gate/reduce", "linear"),
    (_BLOCK + r"(?:se|se_module)\.(?:fc2|fc\.2)", "gate/expand", "linear"),
    (r"fc", "head", "linear"),
]
_ARRAYS = {
    "conv": {"weight": ("params", "kernel")},
    "linear": {"weight": ("params", "kernel"), "bias": ("params", "bias")},
    "norm": {
        "weight": ("params", "scale"),
        "bias": ("params", "bias"),
        "running_mean": ("batch_stats", "mean"),
        "running_var": ("batch_stats", "var"),
    },
}
# What the names of a ResNet's parts begin with, except its head's. One that has no
# place here makes it another network.
_PARTS = re.compile(r"layer\d|conv\d|bn\d|stem|downsample")


def place_of(key: str) -> Place | None:
    """Returns where an array of a PyTorch state dict goes; None if nowhere.

    >>> place_of("layer2.0.downsample.0.weight").path
    ('params', 'stage3', 'block1', 'shortcut', 'conv', 'kernel')
    """
    module, _, array = key.rpartition(".")
    for pattern, path, kind in _MODULES:
        match = re.fullmatch(pattern, module)
        if not match or array not in _ARRAYS[kind]:
            continue
        if match.groups():
            stage, block, *number = match.groups()
            path = path.format(*number)
            path = f"stage{int(stage) + 1}/block{int(block) + 1}/{path}"
        part, name = _ARRAYS[kind][array]
        layout = "vector" if kind == "norm" or name == "bias" else kind
        return Place((part, *path.split("/"), name), layout)
    return None


def belongs_to_resnet(key: str) -> bool:
    """Returns whether a key names a part of a ResNet, other than its head."""
    return bool(_PARTS.match(key))


def looks_like(keys: Iterable[str]) -> str:
    """Returns the name of the model whose blocks a state dict has; empty if none's."""
    blocks: list[set[str]] = [set(), set(), set(), set()]
    bottleneck = gate = False
    for key in keys:
        match = re.match(_BLOCK, key)
        if match:
            blocks[int(match[1]) - 1].add(match[2])
            bottleneck |= ".conv3." in key
            gate |= ".se." in key or ".se_module." in key
    sizes = tuple(len(found) for found in blocks)
    for depth, stage_sizes in STAGE_SIZES.items():
        if sizes == stage_sizes and bottleneck == (depth >= 50):
            return f"{'se_' if gate else ''}resnet{depth}"
    return ""
