"""What is said of broken configuration files."""

import pathlib

import pytest

from vt_flax.errors import UserError
from vt_flax.training.config_files import read_file


def write(path: pathlib.Path, *lines: str) -> str:
    """Writes a file, and returns its name."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("name", ["nowhere.py", "nowhere.py:arg", ""])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(UserError, match="there is no such file"):
        read_file(str(tmp_path / name))


@pytest.mark.parametrize(
    "lines,message",
    [
        (["def get_config(:"], "mine.py: SyntaxError"),
        (["import no_such_module"], "mine.py: .*no_such_module"),
        (["x = 1"], "mine.py: .*get_config"),
        (["def get_config():", "  return 1 / 0"], "mine.py: ZeroDivisionError"),
        (["def get_config():", "  return {}"], "mine.py: .*must return a ConfigDict"),
        (["def get_config():", "  raise ValueError()"], "mine.py"),
        (["def get_config():", "  return {}['speed']"], "mine.py: .*speed"),
    ],
)
def test_a_broken_file(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read_file(write(tmp_path / "mine.py", *lines))


def test_what_is_no_python_file(tmp_path):
    path = write(tmp_path / "config.txt", "hello")
    with pytest.raises(UserError, match="not a Python file"):
        read_file(path)
