"""Warnings that our modules and these tests cause are errors: see setup.cfg."""

import warnings

import pytest

CAUSE = "def use(deprecated):\n    deprecated()\n"


def deprecated():
    """Warns as libraries do: in the name of the module that calls."""
    warnings.warn("use another name", DeprecationWarning, stacklevel=2)


def module_that_uses_it(name):
    namespace = {"__name__": name}
    exec(CAUSE, namespace)
    return namespace["use"]


@pytest.mark.parametrize("name", ["vt_flax.nn.layers", "test_layers", "pods"])
def test_a_warning_of_ours_is_an_error(name):
    with pytest.raises(DeprecationWarning, match="use another name"):
        module_that_uses_it(name)(deprecated)


def test_a_warning_of_another_library_is_not():
    with warnings.catch_warnings(record=True) as caught:
        module_that_uses_it("podsoft")(deprecated)
    assert [str(w.message) for w in caught] == ["use another name"]
