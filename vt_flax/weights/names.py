"""Names of a ResNet's arrays in torchvision and timm, and in this package."""

import dataclasses
import re

import numpy as np

# Count of updates in each of PyTorch's BatchNorms, which has no counterpart here.
COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Place:
    """Path and layout of an array in the model.

    Attributes:
      path: `params` or `batch_stats`, then the names in the tree of that part.
      kind: `conv`, whose axes are (out, in, height, width) in PyTorch and (height,
        width, in, out) here; `linear`: (out, in), which may be a 1 x 1 convolution's
        (out, in, 1, 1), and (in, out); or `vector`.
    """

    path: tuple[str, ...]
    kind: str

    def ours(self, array: np.ndarray) -> np.ndarray:
        """Returns an array of PyTorch's with its axes in our order."""
        if self.kind == "conv":
            return array.transpose(2, 3, 1, 0)
        return array.reshape(array.shape[:2]).T if self.kind == "linear" else array

    def theirs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns a shape of ours with its axes in PyTorch's order."""
        if self.kind == "conv":
            return (shape[3], shape[2], shape[0], shape[1])
        return shape[::-1] if self.kind == "linear" else shape

    def fits(self, there: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Returns whether PyTorch's shape `there` is that of an array of ours."""
        wanted = self.theirs(shape)
        return there == wanted or (self.kind == "linear" and there == (*wanted, 1, 1))


_BLOCK = r"layer([1-4])\.(\d+)\."
# Modules of torchvision and timm, their paths here, and their kinds. kuangliu's
# pytorch-cifar says `shortcut` for `downsample`.
_MODULES = [
    (r"conv1", "stem/conv", "conv"),
    (r"bn1", "stem/norm", "norm"),
    (_BLOCK + r"conv([1-3])", "conv{}", "conv"),
    (_BLOCK + r"bn([1-3])", "norm{}", "norm"),
    (_BLOCK + r"(?:downsample|shortcut)\.0", "shortcut", "conv"),
    (_BLOCK + r"(?:downsample|shortcut)\.1", "shortcut_norm", "norm"),
    (_BLOCK + r"se\.fc1", "gate/reduce", "linear"),
    (_BLOCK + r"se\.fc2", "gate/expand", "linear"),
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


def place_of(key: str) -> Place | None:
    """Returns the place of a PyTorch state dict's array; None if it has none.

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
