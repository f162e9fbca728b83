"""What torch.save wrote is read as torch.load reads it, and nothing in it is run."""

import pathlib
import pickle
import sys
import zipfile

import numpy as np
import pickle_writer as writer
import pytest
from pickle_writer import Build, Call, Global, Persistent, Raw, tensor

from vt_flax.errors import UserError
from vt_flax.weights.files import check_sum, open_weights

NO_TORCH = "PyTorch is in the extra: pip install -e .[torch]"


def read(file):
    """Returns the arrays of a file by name."""
    with open_weights(pathlib.Path(file)) as stored:
        arrays = {name: array.read() for name, array in stored.items()}
        for name, array in arrays.items():
            assert array.shape == stored[name].shape
            if stored[name].dtype.islower():  # else by the name of safetensors
                assert array.dtype.name == stored[name].dtype
    return {name: np.array(array) for name, array in arrays.items()}


def line_of(file, content):
    """Returns the one line that content is refused with."""
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(file)
    line = str(error.value)
    assert line.startswith(str(file)) and "\n" not in line
    return line


# --------------------------------------------------------------------- beside PyTorch


def tensors_of(torch):
    """Tensors of many types and layouts, some of which share their numbers."""
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5) / 7
    state = {
        "whole": base,
        "turned": base.permute(2, 0, 1),
        "part": base[1:, ::2, 3],
        "again": base,
        "spread": torch.tensor([3.5]).expand(4, 2),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base[0] + 1),
        "count": torch.tensor(7),
    }
    for name in ("float64", "float16", "bfloat16", "int32", "uint8", "bool"):
        state[name] = (base * 3).to(getattr(torch, name))
    return state


def same_as_pytorch(found, state):
    assert list(found) == list(state)
    for name in state:
        expected = state[name].detach()
        assert found[name].dtype.name == str(expected.dtype).removeprefix("torch.")
        if found[name].dtype.name == "bfloat16":
            expected, found[name] = expected.float(), found[name].astype(np.float32)
        np.testing.assert_array_equal(found[name], expected.numpy(), err_msg=name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickles"])
def test_every_type_and_layout(zipped, tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    state = tensors_of(torch)
    file = tmp_path / "state.pth"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    same_as_pytorch(read(file), state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickles"])
@pytest.mark.parametrize("section", ["state_dict", "model"])
def test_a_state_dict_among_other_things(section, zipped, tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    network = torch.nn.DataParallel(torch.nn.Linear(3, 2))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    checkpoint = {
        "epoch": 3,
        "best": 71.5,
        "arch": "linear",
        "type": torch.float32,
        section: network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    file = tmp_path / "checkpoint.pth.tar"
    torch.save(checkpoint, file, _use_new_zipfile_serialization=zipped)
    same_as_pytorch(read(file), network.module.state_dict())


def test_a_whole_network_is_asked_for_as_a_state_dict(tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    file = tmp_path / "network.pth"
    torch.save(torch.nn.Linear(3, 2), file)
    line = line_of(file, file.read_bytes())
    assert "torch.nn.modules.linear.Linear" in line and "state_dict()" in line


def test_types_that_numpy_has_not(tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from safetensors.torch import save_file

    file = tmp_path / "state.safetensors"
    save_file({"conv1.weight": torch.zeros(2, dtype=torch.float8_e4m3fn)}, file)
    with open_weights(file) as stored:
        assert stored["conv1.weight"].dtype == "F8_E4M3"  # which `fit` refuses
    file = tmp_path / "state.pth"
    torch.save({"conv1.weight": torch.zeros(2, dtype=torch.complex64)}, file)
    assert "torch.ComplexFloatStorage" in line_of(file, file.read_bytes())


def test_safetensors(tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from safetensors.torch import save_file

    state = tensors_of(torch)
    state = {name: state[name].detach().clone().contiguous() for name in sorted(state)}
    save_file(state, tmp_path / "state.safetensors")
    found = read(tmp_path / "state.safetensors")
    same_as_pytorch({name: found[name] for name in sorted(found)}, state)


# ------------------------------------------------- what PyTorch does not write any more


def small_arrays():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(2, 3, 4)).astype(np.float32),
        # Its strides are not those of its shape.
        "b": np.asfortranarray(rng.normal(size=(3, 5)).astype(np.float32)),
    }


def ordered(items, state=None):
    """An OrderedDict as Python 2 pickled it, with its attributes."""
    value = Call(Global("collections", "OrderedDict"), ([list(i) for i in items],))
    return value if state is None else Build(value, state)


def parameter(data, new=False):
    return Build(
        Call(Global("torch.nn.parameter", "Parameter"), (data,), new),
        (True, False, writer.HOOKS),
    )


def check_beside_torch(file, arrays):
    found = read(file)
    assert list(found) == list(arrays)
    for name in arrays:
        np.testing.assert_array_equal(found[name], arrays[name])
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    expected = torch.load(file, weights_only=False)
    assert list(expected) == list(arrays)
    for name in arrays:
        theirs = expected[name].detach().numpy()
        np.testing.assert_array_equal(theirs, arrays[name])


@pytest.mark.parametrize("parameters", [True, False])
def test_the_tar_archives_of_before_2017(parameters, tmp_path):
    arrays = small_arrays()
    made = parameter if parameters else lambda x: x
    # Strings of Python 2.
    names = Raw(b"U\x01a"), Raw(b"U\x01b")
    items = zip(names, (made(Persistent(10)), made(Persistent(20))), strict=True)
    data = writer.dump(ordered(items, {"_metadata": {"": {"version": 1}}}))
    file = tmp_path / "resnet18-0000.pth"
    file.write_bytes(writer.tar_file(data, {10: arrays["a"], 20: arrays["b"]}))
    check_beside_torch(file, arrays)


def test_the_pickles_of_2017(tmp_path):
    """Tensors that are made first and filled later; one is part of a storage."""
    arrays = small_arrays()
    root = np.concatenate([np.zeros(5, np.float32), arrays["b"].ravel("K")])
    view = Persistent(("storage", writer.FLOAT, "2", "cpu", 20, ("3", 5, 15)))
    storage = Persistent(("storage", writer.FLOAT, "1", "cpu", 24, None))
    filled = Build(
        Call(Global("torch", "FloatTensor"), ()), (storage, 0, (2, 3, 4), (12, 4, 1))
    )
    second = Call(Global("torch._utils", "_rebuild_tensor"), (view, 0, (3, 5), (1, 3)))
    data = writer.dump(ordered([("a", filled), ("b", parameter(second))]))
    storages = {"1": arrays["a"].tobytes(), "2": root.tobytes()}
    (tmp_path / "old.pth").write_bytes(writer.pickles_file(data, storages))
    check_beside_torch(tmp_path / "old.pth", arrays)


# -------------------------------------------------------------------- hostile pickles

MARKED = "__import__('pathlib').Path({!r}).touch()"


def hostile(mark):
    """Returns pickles that would run a command, or do what else no weights do."""
    command = f"touch {mark}"
    code = MARKED.format(str(mark))
    system = Global("posix", "system")
    run = Call(system, (command,))
    nested = writer.dump(run)
    argument = f"(S'{command}'\nt".encode()
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    good = tensor("0", (2,), 2)
    cases = {
        "call": run,
        "call in a state dict": {"conv1.weight": run},
        "eval": Call(Global("builtins", "eval"), (code,)),
        "exec, in Python 2's name": Call(Global("__builtin__", "execfile"), (code,)),
        "new object": Call(Global("subprocess", "Popen"), (command,), new=True),
        "getattr": Call(Global("builtins", "getattr"), (rebuild, "__globals__")),
        "dotted name": Call(Global("torch", "_utils.os.system"), (command,)),
        "nested pickle": Call(Global("torch.storage", "_load_from_bytes"), (nested,)),
        "pickle.loads": Call(Global("_pickle", "loads"), (nested,)),
        "as a storage's type": Persistent(("storage", run, "0", "cpu", 2)),
        "as a storage": Call(rebuild, (run, 0, (2,), (1,), False, writer.HOOKS)),
        "as a reference": Persistent(run),
        "as a shape": Call(rebuild, (good.arguments[0], 0, run, (1,), False, {})),
        "a container with its source": Persistent(("module", system, "f", code)),
        "an allowed name called with others": Call(
            Global("collections", "OrderedDict"), (command,)
        ),
        "an allowed name called with nothing": Call(rebuild, ()),
        "a type of storage called": Call(writer.FLOAT, (command,)),
        "a function of a dictionary": Call({}, (command,)),
        "a parameter of a string": parameter(command),
        "a state for a name": Build(rebuild, {"__code__": code}),
        "a state for a type": Build(Global("torch", "FloatTensor"), (None, {"x": 1})),
        "a state for a tensor": Build(good, ({"__class__": rebuild}, {"x": rebuild})),
        "a state of another tensor": Build(good, (good.arguments[0], 0, (9,), (1,))),
        "beyond its storage": tensor("0", (3,), 2),
        "far beyond": tensor("0", (2,), 2, (2**62,)),
        "before its storage": tensor("0", (2,), 2, (-1,)),
        "stack global": Raw(b"X\5\0\0\0posixX\6\0\0\0system\x93" + argument + b"R"),
        "inst": Raw(f"(S'{command}'\niposix\nsystem\n".encode()),
        "obj": Raw(f"(cposix\nsystem\nS'{command}'\no".encode()),
        "extension": Raw(b"\x82\x01"),
        "new object with keywords": Raw(b"cposix\nsystem\n)}\x92"),
        "an index as large as memory": Raw(b"Nr\xff\xff\xff\x7f"),
        "deep keys": Raw(b"}" + b")" + b"\x85" * 100_000 + b"Ns"),
    }
    return {name: writer.dump(value) for name, value in cases.items()}


@pytest.mark.parametrize("form", ["zip", "pickles", "tar"])
@pytest.mark.parametrize("case", list(hostile("x")))
def test_nothing_hostile_is_run(case, form, tmp_path):
    mark = tmp_path / "mark"
    data = hostile(mark)[case]
    content = {
        "zip": lambda: writer.zip_file(data, {"0": bytes(8)}),
        "pickles": lambda: writer.pickles_file(data, {"0": bytes(8)}),
        "tar": lambda: writer.tar_file(data, {1: np.zeros(2, np.float32)}),
    }[form]()
    line_of(tmp_path / "hostile.pth", content)
    assert not mark.exists()


def test_hostile_pickles_do_what_they_are_made_for(tmp_path):
    """Else nothing would be shown by their doing nothing here."""
    mark = tmp_path / "mark"
    for case in ("call", "eval", "pickle.loads", "stack global", "inst", "obj"):
        pickle.loads(hostile(mark)[case])
        assert mark.exists(), case
        mark.unlink()


@pytest.mark.parametrize("place", range(5))
def test_every_pickle_of_a_file_is_read_so(place, tmp_path):
    mark = tmp_path / "mark"
    run = hostile(mark)["call"]
    parts = [writer.dump(writer.MAGIC), writer.dump(1001)]
    parts += [writer.dump({"little_endian": True}), writer.dump({}), writer.dump([])]
    parts[place] = run
    assert "system" in line_of(tmp_path / "hostile.pth", b"".join(parts))
    assert not mark.exists()


def test_a_pickle_among_the_numbers_stays_numbers(tmp_path):
    mark = tmp_path / "mark"
    numbers = hostile(mark)["call"]
    numbers += bytes(-len(numbers) % 4)
    size = len(numbers) // 4
    data = writer.dump({"conv1.weight": tensor("0", (size,), size)})
    for made in (writer.zip_file, writer.pickles_file):
        (tmp_path / "file.pth").write_bytes(made(data, {"0": numbers}))
        assert read(tmp_path / "file.pth")["conv1.weight"].tobytes() == numbers
    assert not mark.exists()


def test_no_module_is_imported_for_a_name(tmp_path):
    module = tmp_path / "vt_flax_hostile.py"
    module.write_text("raise SystemExit(0)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        data = writer.dump(Global("vt_flax_hostile", "name"))
        line = line_of(tmp_path / "x.pth", writer.zip_file(data, {}))
    finally:
        sys.path.remove(str(tmp_path))
    assert "vt_flax_hostile.name" in line and "vt_flax_hostile" not in sys.modules


# ------------------------------------------------------------------------ other files


def whole_file(form):
    """Returns a good file of each form."""
    arrays = small_arrays()
    arrays["b"] = np.ascontiguousarray(arrays["b"])
    storages = {name: array.tobytes() for name, array in arrays.items()}
    data = writer.dump({n: tensor(n, a.shape, a.size) for n, a in arrays.items()})
    if form == "zip":
        return writer.zip_file(data, storages)
    if form == "pickles":
        return writer.pickles_file(data, storages)
    if form == "tar":
        data = writer.dump({"a": Persistent(10), "b": Persistent(20)})
        return writer.tar_file(data, {10: arrays["a"], 20: arrays["b"]})
    import safetensors.numpy

    return safetensors.numpy.save(arrays)


FORMS = ("zip", "pickles", "tar", "safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_cut_off(form, tmp_path):
    content = whole_file(form)
    file = tmp_path / "file"
    file.write_bytes(content)
    found = read(file)
    for name, array in small_arrays().items():
        np.testing.assert_array_equal(found[name], array)
    # A tar archive ends in padding.
    end = len(content.rstrip(b"\0")) if form == "tar" else len(content)
    for length in {*np.linspace(1, end - 1, 60, dtype=int), end - 1, 8, 9, 300}:
        line_of(file, content[: min(length, end - 1)])
    assert "is empty" in line_of(file, b"")


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bits(form, tmp_path):
    """Either a line, or the arrays; only zip archives hold sums of their numbers."""
    content = whole_file(form)
    arrays, refused = small_arrays(), 0
    file = tmp_path / "file"
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 8 * len(content), 400):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            found = read(file)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        if form == "zip":
            for name, array in arrays.items():
                np.testing.assert_array_equal(found[name], array)
    assert refused > 20


@pytest.mark.parametrize(
    "content, message",
    [
        (b"just text, of some length\n" * 9, "neither a .safetensors file nor"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "neither a .safetensors file nor"),
        (pickle.dumps({"fc.weight": [1.0]}), "a pickle, but not of torch.save"),
        (writer.zip_file(writer.dump([1, 2]), {}), "no state dict, but something"),
        (writer.zip_file(writer.dump({"epoch": 3}), {}), "not one array"),
        (
            writer.zip_file(
                writer.dump({"a": tensor("0", (2,), 2)}),
                {"0": bytes(8)},
                compression=zipfile.ZIP_DEFLATED,
            ),
            "compressed",
        ),
        (
            writer.pickles_file(writer.dump({}), {}, {"little_endian": False}),
            "big-endian",
        ),
        (
            writer.zip_file(writer.dump({"a": tensor("9", (2,), 2)}), {}),
            "'data/9' is not in it",
        ),
        (
            writer.zip_file(writer.dump({"a\x1b[1m": tensor("0", (2,), 2)}), {}),
            "no name",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_state_dict(content, message, tmp_path):
    line = line_of(tmp_path / "file.pth", content)
    assert message in line and "\x1b" not in line


def test_where_there_is_no_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder: name the file in it"):
        read(tmp_path)


def test_the_sum_in_a_name(tmp_path):
    import hashlib

    digest = hashlib.sha256(b"content").hexdigest()
    for name in ("x.pth", f"resnet18-{digest[:8]}.pth", "resnet18-20240131.pth"):
        (tmp_path / name).write_bytes(b"content")
        assert check_sum(tmp_path / name) == digest
    wrong = tmp_path / "resnet18-5c106cde.pth"
    wrong.write_bytes(b"content")
    with pytest.raises(UserError, match="is damaged: its SHA-256 is .* by its name"):
        check_sum(wrong)
