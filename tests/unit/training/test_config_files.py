"""Where configuration files are found, and what is said of broken ones."""

import pathlib

import pytest

from vt_flax.errors import UserError
from vt_flax.training.config_files import read_file

CONFIGS = pathlib.Path(__file__).resolve().parents[3] / "configs"
MINE = ("from ml_collections import ConfigDict", "def get_config(arg=''):")


def write(path: pathlib.Path, *lines: str) -> str:
    """Writes a file, and returns its name."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("name", [path.name for path in CONFIGS.glob("*.py")])
def test_the_package_brings_its_files_along(name, tmp_path, monkeypatch):
    expected = read_file(str(CONFIGS / name))
    monkeypatch.chdir(tmp_path)
    for spelling in (f"configs/{name}", f"./configs/{name}"):
        assert read_file(spelling) == expected
    assert not any(tmp_path.iterdir())


def test_the_package_s_files_take_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_file("configs/imagenet.py:resnet50").model.name == "resnet50"
    with pytest.raises(UserError, match=r"--config configs/quickstart.py:fast: "):
        read_file("configs/quickstart.py:fast")


def test_files_of_the_current_folder_go_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "configs" / "imagenet.py", *MINE, "  return ConfigDict({'a': arg})"
    )
    assert read_file("configs/imagenet.py:x").to_dict() == {"a": "x"}
    assert "model" in read_file("configs/quickstart.py")


@pytest.mark.parametrize(
    "name", ["configs/nowhere.py", "quickstart.py", "other/configs/quickstart.py"]
)
def test_a_file_that_is_nowhere(name, tmp_path, monkeypatch):
    """The line names those that there are."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no such file") as refusal:
        read_file(name)
    message = str(refusal.value)
    assert message.startswith(f"--config {name}: ") and "\n" not in message
    assert all(f"configs/{path.name}" in message for path in CONFIGS.glob("*.py"))


@pytest.mark.parametrize("name", ["nowhere.py", "nowhere.py:arg", ""])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(UserError, match="there is no such file"):
        read_file(str(tmp_path / name))


@pytest.mark.parametrize(
    "lines,message",
    [
        (["def get_config(:"], "mine.py: SyntaxError"),
        (["import no_such_module"], "mine.py: .*no_such_module"),
        (["x = 1"], r"mine.py: must define get_config\(\), which returns"),
        (
            ["def get_config(arg):", "  pass"],
            "mine.py: TypeError: .*missing 1 required",
        ),
        (
            ["def get_config():", "", "  return 1 / 0"],
            r"ZeroDivisionError: .*\(line 3\)$",
        ),
        (["def get_config():", "  return {}"], "mine.py: .*which returns a ConfigDict"),
        (["def get_config():", "  raise ValueError()"], "mine.py"),
        (
            ["def get_config():", "  return {}['speed']"],
            r"KeyError: 'speed' \(line 2\)$",
        ),
    ],
)
def test_a_broken_file(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read_file(write(tmp_path / "mine.py", *lines))


def test_what_is_no_python_file(tmp_path):
    path = write(tmp_path / "config.txt", "hello")
    with pytest.raises(
        UserError, match="config.txt: NameError: name 'hello' is not defined"
    ):
        read_file(path)
