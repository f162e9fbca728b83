"""Costs of compiled steps, kept for the next plan."""

import hashlib
import json
import os
import pathlib
import sys
import tempfile
from typing import Any

from ml_collections import ConfigDict

from vt_flax.plan.tpu_compiler import libtpu_version
from vt_flax.version import versions

FOLDER = "~/.cache/vt_flax/plan"
# What no step depends on: sections and keys of a configuration, and keys of `data`.
UNUSED = (
    *("duration", "init_from", "schedule", "eval", "checkpoint", "log", "profile"),
    "compilation_cache",
)
UNUSED_DATA = (
    *("name", "data_dir", "train_split", "eval_split", "on_error", "workers"),
    *("readers", "prefetch", "cache"),
)
# Environment variables with options of the compilers.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


class PlanCache:
    """Costs by configuration, topology and versions, one file each.

    Args:
      folder: folder of the files; made when the first is written.
      fresh: whether to ignore what is there.
    """

    def __init__(self, folder: pathlib.Path, fresh: bool = False):
        self._folder, self._fresh = folder, fresh

    def get(self, key: str) -> dict[str, Any] | None:
        """Returns cached costs; None if there are none, or they cannot be read."""
        if self._fresh:
            return None
        try:
            return json.loads((self._folder / f"{key}.json").read_text())["costs"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, costs: dict[str, Any]) -> None:
        """Writes costs; if that fails, prints a line."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._folder, delete=False
            ) as file:
                json.dump({"costs": costs}, file)
            os.replace(file.name, self._folder / f"{key}.json")
        except OSError as error:
            reason = error.strerror or error
            print(f"{self._folder}: {reason}: nothing is kept there", file=sys.stderr)


def cache_key(config: ConfigDict, topology: str) -> str:
    """Returns a hash of what decides the costs of a step.

    Args:
      config: a resolved configuration without a teacher.
      topology: such as `v5e:2x2`.
    """
    values = {k: v for k, v in config.to_dict().items() if k not in UNUSED}
    values["data"] = {k: v for k, v in values["data"].items() if k not in UNUSED_DATA}
    key = {
        "config": values,
        "topology": topology,
        "versions": versions() | {"libtpu": libtpu_version()},
        "variables": {name: os.environ.get(name, "") for name in VARIABLES},
    }
    text = json.dumps(key, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
