"""Arrays of files: what PyTorch saves is read, and nothing in a file is run."""

import argparse
import collections
import datetime
import hashlib
import io
import json
import pathlib
import pickle
import sys
import types
import zipfile

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
    assert line.startswith(str(file)) and "\n" not in line and "\x1b" not in line
    return line


# --------------------------------------------------------------------- beside PyTorch


def tensors_of(torch):
    """Tensors of many types and layouts, some of which share their numbers."""
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5) / 7
    state = {
        "whole": base,
        "permuted": base.permute(2, 0, 1),
        "part": base[1:, ::2, 3],
        "again": base,
        "expanded": torch.tensor([3.5]).expand(4, 2),
        "sparse": base[0].to_sparse(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base[0] + 1),
        "count": torch.tensor(7),
    }
    for name in ("float64", "float16", "bfloat16", "int32", "uint8", "bool"):
        state[name] = (base * 3).to(getattr(torch, name))
    return state


def check_same(found, state):
    assert set(found) == set(state)
    for name, tensor in state.items():
        expected = tensor.detach().to_dense()
        assert found[name].shape == tuple(expected.shape)
        assert found[name].dtype == str(expected.dtype).removeprefix("torch.")
        value = found[name].read().astype(np.float32)
        np.testing.assert_array_equal(value, expected.float().numpy(), err_msg=name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_every_type_and_layout(zipped, torch, tmp_path):
    state, file = tensors_of(torch), tmp_path / "state.pth"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    check_same(read_arrays(file), state)


def test_tensors_of_a_gpu(torch, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
    state = {"weight": torch.arange(6.0)}
    torch.save(state, tmp_path / "state.pth")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "state.pth")
    check_same(read_arrays(tmp_path / "state.pth"), state)


def test_safetensors_of_every_type(torch, tmp_path):
    from safetensors.torch import save_file

    state = tensors_of(torch)
    floats = ("float64", "float32", "float16", "bfloat16")
    state = {
        name: tensor.detach().to_dense().clone().contiguous()
        for name, tensor in state.items()
        if str(tensor.dtype).removeprefix("torch.") in floats
    }
    # Content tells what a file is, not its name.
    save_file(state, tmp_path / "state.pth")
    check_same(read_arrays(tmp_path / "state.pth"), state)
    save_file({"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "f8")
    assert read_arrays(tmp_path / "f8")["a"].dtype == "F8_E4M3"  # which `fit` refuses


def test_nested_dictionaries_and_lists(torch, tmp_path):
    network = torch.nn.DataParallel(torch.nn.Linear(3, 2))
    momenta = {i: {"momentum_buffer": torch.ones(2)} for i in range(2)}
    checkpoint = {
        "epoch": 3,
        "type": torch.float32,
        "nets": [network.state_dict()],
        "optimizer": {"state": momenta, "param_groups": [{"lr": 0.1}]},
    }
    checkpoint["checkpoint"] = checkpoint  # a pickle may contain itself
    torch.save(checkpoint, tmp_path / "checkpoint.tar")
    found = read_arrays(tmp_path / "checkpoint.tar")
    assert {n: a.section for n, a in found.items() if "checkpoint" not in n} == {
        "nets.0.module.weight": "nets.0",
        "nets.0.module.bias": "nets.0",
        "optimizer.state.0.momentum_buffer": "optimizer.state.0",
        "optimizer.state.1.momentum_buffer": "optimizer.state.1",
    }
    weight = network.module.weight.detach().numpy()
    np.testing.assert_array_equal(found["nets.0.module.weight"].read(), weight)


# ------------------------------------------------------- what is saved beside weights


@pytest.fixture
def foreign(monkeypatch):
    """Makes an object of a module that is gone again when the file is read."""

    def make(module, name, base=object):
        made = types.ModuleType(module)
        kind = type(name, (base,), {"__module__": module, "__qualname__": name})
        setattr(made, name, kind)
        monkeypatch.setitem(sys.modules, module, made)
        value = kind()
        value.attribute = 3
        if base is not object:
            value["key"] = 1
        return value

    return make


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_what_trainers_save_beside_the_weights(
    zipped, foreign, torch, tmp_path, monkeypatch
):
    weight = torch.arange(6.0)
    checkpoint = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("out"), seen={1}),
        "metric": np.float64(71.5),
        "confusion": np.arange(4.0),
        "history": collections.defaultdict(list, {"loss": [0.1]}),
        "time": datetime.datetime(2020, 1, 1),
        "version": torch.torch_version.TorchVersion("2.1"),
        "range": (range(3), slice(2), frozenset([1])),
        "hyper_parameters": foreign("omegaconf", "DictConfig"),
        "parameters": foreign("lightning_fabric", "AttributeDict", dict),
        "config": foreign("yacs", "CfgNode", dict),
        "state_dict": {"weight": weight},
    }
    file = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, file, _use_new_zipfile_serialization=zipped)
    for name in ("omegaconf", "lightning_fabric", "yacs"):
        monkeypatch.delitem(sys.modules, name)
    safe = {*torch.serialization.get_safe_globals()}
    found = read_arrays(file)
    assert list(found) == ["state_dict.weight"]
    np.testing.assert_array_equal(found["state_dict.weight"].read(), weight.numpy())
    assert not {"omegaconf", "lightning_fabric", "yacs"} & {*sys.modules}
    assert {*torch.serialization.get_safe_globals()} == safe


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile(mark):
    """Returns objects that leave a mark when they are unpickled."""
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    return {
        "posix.system": Runs(__import__("os").system, f"touch {mark}"),
        "builtins.eval": Runs(eval, code),
        "builtins.exec": Runs(exec, code),
        "timeit.timeit": Runs(__import__("timeit").timeit, code, "", None, 1),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("name", list(hostile("")))
def test_nothing_in_a_file_is_run(name, zipped, torch, tmp_path):
    mark, file = tmp_path / "mark", tmp_path / "file.pth"
    value = {"conv1.weight": torch.zeros(2), "more": hostile(mark)[name]}
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    line = error_of(file)
    assert f"holds a Python object, '{name}'" in line
    assert "torch.save(model.state_dict(), FILE)" in line and not mark.exists()


def test_hostile_files_do_what_they_are_made_for(torch, tmp_path):
    """Or else their doing nothing here would show nothing."""
    torch.save(hostile(tmp_path / "mark")["builtins.eval"], tmp_path / "file.pth")
    torch.load(tmp_path / "file.pth", weights_only=False)
    assert (tmp_path / "mark").exists()


def test_a_whole_network_is_asked_for_as_weights(torch, tmp_path):
    torch.save(torch.nn.Linear(3, 2), tmp_path / "network.pth")
    line = error_of(tmp_path / "network.pth")
    assert "'torch.nn.modules.linear.Linear'" in line
    assert "torch.save(model.state_dict(), FILE)" in line


def test_another_protocol_of_pickle(torch, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "file.pth", pickle_protocol=4)
    assert "another pickle_protocol than the default" in error_of(tmp_path / "file.pth")


# ------------------------------------------------------------------------ other files


def tar_file():
    """Returns the beginning of a tar archive."""
    start = bytearray(1024)
    start[:7], start[257:262] = b"storage", b"ustar"
    return bytes(start)


def zip_file(*members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for member in members:
            archive.writestr(member, "")
    return stream.getvalue()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("net.pth", b"", "is empty"),
        ("net.txt", b"just text, of some length\n" * 9, "is neither a .safetensors"),
        ("net.onnx", b"\x08\x08\x12\x07pytorch" + bytes(99), "is neither a .safetens"),
        ("net.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "is neither a .safetensors file"),
        (
            "net.pth",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
            "is a Git LFS pointer, no weights: run git lfs pull",
        ),
        (
            "net.pth",
            b"\n<!DOCTYPE html>\n<html>",
            "is a web page, no weights: download",
        ),
        (
            "model.safetensors.index.json",
            json.dumps({"metadata": {}, "weight_map": {}}, indent=2).encode(),
            "the index of a sharded checkpoint: name a file of weights",
        ),
        (
            "R-50.pkl",
            pickle.dumps({"model": {"stem.conv1.weight": np.ones(3)}}, 2),
            "is a pickle that torch.save did not write (Detectron2's .pkl?)",
        ),
        ("net.pth", tar_file(), "is a tar archive, as PyTorch wrote before 0.1.10"),
        ("net.zip", zip_file("net.pth"), "is a zip archive that torch.save did not"),
        (
            "net.pt",
            zip_file("net/data.pkl", "net/constants.pkl"),
            "is a TorchScript program: save its weights by torch.save(torch.jit.load(",
        ),
    ],
)
def test_other_files(name, content, message, tmp_path, monkeypatch):
    # None of them needs PyTorch to say what it is.
    monkeypatch.setitem(sys.modules, "torch", None)
    file = tmp_path / name
    file.write_bytes(content)
    assert message in error_of(file)


def test_where_there_is_no_file(tmp_path):
    assert "No such file" in error_of(tmp_path / "none.pth")
    assert error_of(tmp_path).endswith("is a folder: name the file in it")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert f"such as {tmp_path / 'model.safetensors'}" in error_of(tmp_path)


def test_without_pytorch(tmp_path, monkeypatch):
    (tmp_path / "net.pth").write_bytes(zip_file("net/data.pkl"))
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "net.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    line = error_of(tmp_path / "net.pth")
    assert 'pip install "vt_flax[torch]"' in line and ".safetensors" in line
    # An old one has no list of safe names.
    old = types.ModuleType("torch.serialization")
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch.serialization", old)
    assert error_of(tmp_path / "net.pth") == line
    found = read_arrays(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(found["a"].read(), 1.0)


@pytest.mark.parametrize("form", ["zip", "before 1.6", "safetensors"])
def test_damaged_files(form, torch, tmp_path):
    """Cut off files are refused, and flipped bits never end in a traceback."""
    arrays = {"a": np.arange(24, dtype=np.float32), "b": np.ones((3, 5), np.float32)}
    file = tmp_path / "file"
    if form == "safetensors":
        safetensors.numpy.save_file(arrays, file)
    else:
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(state, file, _use_new_zipfile_serialization=form == "zip")
    content = file.read_bytes()
    for length in {*np.linspace(1, len(content) - 1, 40, dtype=int), 8, 9}:
        file.write_bytes(content[:length])
        error_of(file)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 8 * len(content), 200):
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
