"""Arrays of files: what PyTorch saves is read, and nothing in a file is run."""

import argparse
import datetime
import hashlib
import os
import pathlib
import sys
import types

import numpy as np
import pytest
import safetensors.numpy

from vt_flax.errors import UserError
from vt_flax.weights.files import check_sum, read_arrays


def error_of(file):
    """Returns the one line that reading a file ends with."""
    with pytest.raises(UserError) as error:
        read_arrays(pathlib.Path(file))
    line = str(error.value)
    assert line.startswith(str(file)) and "\n" not in line
    return line


def check_same(found, state):
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].dtype == str(tensor.dtype).removeprefix("torch.")
        value = found[name].read().astype(np.float32)
        expected = tensor.detach().float().numpy()
        np.testing.assert_array_equal(value, expected, err_msg=name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_types_and_layouts_of_torch_save(zipped, torch, tmp_path):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5) / 7
    state = {
        "whole": base,
        "permuted": base.permute(2, 0, 1),
        "part": base[1:, ::2, 3],
        "expanded": torch.tensor([3.5]).expand(4, 2),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(base[0] + 1),
    }
    for name in ("float64", "float16", "bfloat16", "int32"):
        state[name] = (base * 3).to(getattr(torch, name))
    file = tmp_path / "state.pth"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    check_same(read_arrays(file), state)


def test_tensors_of_a_gpu(torch, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
    state = {"weight": torch.arange(6.0)}
    torch.save(state, tmp_path / "state.pth")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "state.pth")
    check_same(read_arrays(tmp_path / "state.pth"), state)


def test_types_of_safetensors(torch, tmp_path):
    from safetensors.torch import save_file

    base = torch.arange(6.0).reshape(2, 3) / 7
    state = {
        name: base.to(getattr(torch, name))
        for name in ("float64", "float32", "float16", "bfloat16")
    }
    # The content decides, not the name.
    save_file(state, tmp_path / "state.pth")
    check_same(read_arrays(tmp_path / "state.pth"), state)
    save_file({"a": base.to(torch.float8_e4m3fn)}, tmp_path / "f8")
    assert read_arrays(tmp_path / "f8")["a"].dtype == "F8_E4M3"  # which `fit` rejects


def test_nested_dictionaries_and_lists(torch, tmp_path):
    network = torch.nn.DataParallel(torch.nn.Linear(3, 2))
    momenta = {i: {"momentum_buffer": torch.ones(2)} for i in range(2)}
    checkpoint = {
        "epoch": 3,
        "nets": [network.state_dict()],
        "optimizer": {"state": momenta, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(checkpoint, tmp_path / "checkpoint.tar")
    found = read_arrays(tmp_path / "checkpoint.tar")
    assert {name: array.section for name, array in found.items()} == {
        "nets.0.module.weight": "nets.0",
        "nets.0.module.bias": "nets.0",
        "optimizer.state.0.momentum_buffer": "optimizer.state.0",
        "optimizer.state.1.momentum_buffer": "optimizer.state.1",
    }
    weight = network.module.weight.detach().numpy()
    np.testing.assert_array_equal(found["nets.0.module.weight"].read(), weight)


# ------------------------------------------------------- what is saved beside weights


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_what_trainers_save_beside_the_weights(zipped, torch, tmp_path, monkeypatch):
    # A dictionary of a module that is gone when the file is read.
    module = types.ModuleType("yacs")
    names = {"__module__": "yacs", "__qualname__": "CfgNode"}
    module.CfgNode = type("CfgNode", (dict,), names)
    monkeypatch.setitem(sys.modules, "yacs", module)
    config = module.CfgNode(key=1)
    config.attribute = 3
    checkpoint = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("out"), seen={1}),
        "metric": np.float64(71.5),
        "time": datetime.datetime(2020, 1, 1),
        "version": torch.torch_version.TorchVersion("2.1"),
        "range": (range(3), slice(2), frozenset([1])),
        "config": config,
        "state_dict": {"weight": torch.arange(6.0)},
    }
    file = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, file, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "yacs")
    safe = {*torch.serialization.get_safe_globals()}
    found = read_arrays(file)
    check_same(found, {"state_dict.weight": torch.arange(6.0)})
    assert "yacs" not in sys.modules
    assert {*torch.serialization.get_safe_globals()} == safe


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_nothing_in_a_file_is_run(zipped, torch, tmp_path):
    mark, file = tmp_path / "mark", tmp_path / "file.pth"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    hostile = {
        "posix.system": Runs(os.system, f"touch {mark}"),
        "builtins.eval": Runs(eval, code),
    }
    for name, value in hostile.items():
        value = {"conv1.weight": torch.zeros(2), "more": value}
        torch.save(value, file, _use_new_zipfile_serialization=zipped)
        line = error_of(file)
        assert f"holds a Python object, '{name}'" in line
        assert "torch.save(model.state_dict(), FILE)" in line and not mark.exists()
    # Read without this care, the file does run.
    torch.load(file, weights_only=False)
    assert mark.exists()


def test_a_pickled_network_is_rejected(torch, tmp_path):
    torch.save(torch.nn.Linear(3, 2), tmp_path / "network.pth")
    line = error_of(tmp_path / "network.pth")
    assert "'torch.nn.modules.linear.Linear'" in line
    assert "torch.save(model.state_dict(), FILE)" in line


# ------------------------------------------------------------------------ other files


def test_other_files(tmp_path, monkeypatch):
    # They are recognized without PyTorch.
    monkeypatch.setitem(sys.modules, "torch", None)
    file = tmp_path / "net.pth"
    for content in (
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
        b"<!DOCTYPE html>\n<html>",
        b'{\n  "metadata": {}, "weight_map": {}}',
    ):
        file.write_bytes(content)
        assert "is neither a .safetensors file nor" in error_of(file)
    assert "No such file" in error_of(tmp_path / "none.pth")
    assert "Is a directory" in error_of(tmp_path)


def test_without_pytorch(tmp_path, monkeypatch):
    (tmp_path / "net.pth").write_bytes(b"PK")
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "net.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    line = error_of(tmp_path / "net.pth")
    assert 'pip install "vt_flax[torch]"' in line and ".safetensors" in line
    found = read_arrays(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(found["a"].read(), 1.0)


@pytest.mark.parametrize("form", ["zip", "before 1.6", "safetensors"])
def test_damaged_files(form, torch, tmp_path):
    """Cut off files are rejected, and flipped bits never end in a traceback."""
    arrays = {"a": np.arange(24, dtype=np.float32), "b": np.ones((3, 5), np.float32)}
    file = tmp_path / "file"
    if form == "safetensors":
        safetensors.numpy.save_file(arrays, file)
    else:
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(state, file, _use_new_zipfile_serialization=form == "zip")
    content = file.read_bytes()
    for length in {*np.linspace(1, len(content) - 1, 15, dtype=int), 8, 9}:
        file.write_bytes(content[:length])
        error_of(file)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 8 * len(content), 50):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            for array in read_arrays(file).values():
                array.read()
        except UserError as error:
            assert "\n" not in str(error)


def test_the_sum_in_a_name(tmp_path):
    digest = hashlib.sha256(b"content").hexdigest()
    for name in ("x.pth", f"resnet18-{digest[:8]}.pth", "resnet18-20240131.pth"):
        (tmp_path / name).write_bytes(b"content")
        assert check_sum(tmp_path / name) == digest
    wrong = tmp_path / "resnet18-5c106cde.pth"
    wrong.write_bytes(b"content")
    with pytest.raises(UserError, match="is damaged: its SHA-256 is .* by its name"):
        check_sum(wrong)
