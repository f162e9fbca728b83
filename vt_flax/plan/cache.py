"""What steps were found to cost, kept for the next plan."""

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
# Keys of a configuration that no step depends on: sections, and keys of `data`.
ASIDE = (
    *("duration", "init_from", "schedule", "eval", "checkpoint", "log", "profile"),
    "compilation_cache",
)
DATA_ASIDE = (
    *("name", "data_dir", "train_split", "eval_split", "on_error", "workers"),
    *("readers", "prefetch", "cache", "shuffle_buffer"),
)
# By which the compilers are told to compile in another way.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


class PlanCache:
    """Costs by configuration, topology and versions, one file each.

    Args:
      folder: of the files; made when the first is written.
      fresh: whether to compute all anew, and keep that.
    """

    def __init__(self, folder: pathlib.Path, fresh: bool = False):
        self._folder, self._fresh = folder, fresh

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """Returns what was kept; None if nothing was, or it cannot be read."""
        if self._fresh:
            return None
        try:
            content = json.loads(self._file(key).read_text())
            found = content["costs"] if content["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, key: dict[str, Any], costs: dict[str, Any]) -> None:
        """Keeps costs; where that fails, a line says so and the plan goes on."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._folder, delete=False
            ) as file:
                json.dump({"key": key, "costs": costs}, file)
            os.replace(file.name, self._file(key))
        except OSError as error:
            told = f"{self._folder}: {error.strerror or error}: nothing is kept there"
            print(told, file=sys.stderr)

    def _file(self, key: dict[str, Any]) -> pathlib.Path:
        text = json.dumps(key, sort_keys=True)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def cache_key(config: ConfigDict, topology: str) -> dict[str, Any]:
    """Returns what decides the costs of a step, as JSON has it.

    Args:
      config: a resolved configuration without a teacher, which lies outside of it.
      topology: such as `v5e:2x2`.
    """
    values = {k: v for k, v in config.to_dict().items() if k not in ASIDE}
    values["data"] = {k: v for k, v in values["data"].items() if k not in DATA_ASIDE}
    key = {
        "config": values,
        "topology": topology,
        "versions": versions() | {"libtpu": libtpu_version()},
        "variables": {name: os.environ.get(name, "") for name in VARIABLES},
    }
    return json.loads(json.dumps(key))
