"""Fixtures of several modules."""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

from vt_flax.cli import startup
from vt_flax.training import loop

# Of a configuration, what is no part of a compiled step.
AROUND = ("eval", "checkpoint", "log", "profile")


@pytest.fixture(scope="module")
def shared_steps() -> Iterator[None]:
    """Compiles the steps of a module's runs once for each configuration.

    That another process, which compiles them anew, computes the same is tested with
    pods and kills.
    """
    kept: dict[Any, Any] = {}

    def sharing(compile_step: Callable[..., Any]) -> Callable[..., Any]:
        def shared(model: Any, task: Any, *others: Any) -> Any:
            parts = {k: v for k, v in task.config.to_dict().items() if k not in AROUND}
            del parts["data"]["cache"]
            mesh = next(x for x in others if isinstance(x, jax.sharding.Mesh))
            key = compile_step, json.dumps(parts), mesh
            if key not in kept:
                kept[key] = compile_step(model, task, *others)
            return kept[key]

        return shared

    with pytest.MonkeyPatch.context() as patch:
        for name in ("compile_train_step", "compile_eval_step"):
            patch.setattr(loop, name, sharing(getattr(loop, name)))
        yield


@pytest.fixture
def refusal(monkeypatch, capsys) -> Callable[..., str]:
    """Returns `run(main, *arguments)`, which returns a command's one-line error."""

    def run(main: Callable, *arguments: Any) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            startup.run(main)
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and "\n" not in error
        return error

    return run
