"""Imports go one way between the rooms of the package, and in no circle."""

import ast
import graphlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "vt_flax"

# The rooms that each may import; cli, the front doors, may import all.
ROOMS = {
    "nn": set(),
    "fused": {"nn"},
    "models": {"fused", "nn"},
    "weights": {"models"},
    "data": set(),
    "parallel": set(),
    "training": {"weights", "models", "fused", "nn", "data", "parallel"},
    "inference": {"training", "models", "nn", "data", "parallel"},
    "viz": {"inference", "training", "models", "nn", "data", "parallel"},
    "paper": {"viz", "training", "models", "nn"},
    "plan": {"viz", "paper", "training", "models", "data", "parallel"},
    "measure": {"viz", "paper", "plan", "training", "models", "data", "parallel"},
    "__main__": {"cli"},
}
# Modules beside the rooms, which import none of them.
SHARED = {"errors", "experimental", "locks", "paths", "texts", "version"}


def modules():
    """Returns the file of each module, by name."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = file
    return found


MODULES = modules()


def imports(name):
    """Returns the modules of the package that a module imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return (found & {*MODULES}) - {name}


def room(name):
    """Returns the first part of a module's name below the package."""
    return (name.split(".") + [""])[1]


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"vt_flax"}))
def test_direction(name):
    own = room(name)
    allowed = ROOMS.get(own, set() if own in SHARED else {*ROOMS})
    found = {room(other) for other in imports(name)} - SHARED - {own, ""}
    assert found <= allowed


def test_no_circle():
    # A package imports its modules, and a module of it may name the package's others.
    graph = {
        name: {other for other in imports(name) if not name.startswith(f"{other}.")}
        for name in MODULES
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())
