"""`tables.print_rows` prints any name as it is."""

import io
import json
import re
import sys

import pytest

from vt_flax.cli import tables

LONG = 300 * "x"
ROWS = [
    {"image": f"{LONG}/{name}.png", "class 1": ":smile: [b]\x1b[2Jcat", "share 1": 0.5}
    for name in ("a", "b")
]


def test_off_a_terminal_nothing_is_cut(capsys):
    tables.print_rows(ROWS, "table", "a\x1b[2J: :smile:", ["\x9b[b]"])
    title, *table, note = capsys.readouterr().out.splitlines()
    assert title == r"a\x1b[2J: :smile:"
    assert note == r"\x9b[b]"
    lines = [line.split() for line in table if LONG in line]
    assert lines == [[row["image"], ":smile:", r"[b]\x1b[2Jcat", "0.5"] for row in ROWS]


def test_on_a_terminal_what_is_long_goes_on_below(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    tables.print_rows(ROWS, "table")
    said = re.sub("\x1b\\[[0-9]*m", "", terminal.getvalue())
    assert "…" not in said
    assert said.count("x") >= 2 * len(LONG)
    assert max(map(len, said.splitlines())) <= 60
    assert said.count(".png") == 2


def test_json_has_no_numbers_that_are_not_finite(capsys):
    values = [float("nan"), float("inf"), 1.5]
    tables.print_rows([{"losses": values}], "json")
    assert json.loads(capsys.readouterr().out) == [{"losses": [None, None, 1.5]}]


@pytest.mark.parametrize("text", ["\u65e5\u672c", "\U0001f469\u200d\U0001f52c", "\\'"])
def test_letters_stay_as_they_are(text, capsys):
    tables.print_rows([{"image": text}], "table")
    assert text in capsys.readouterr().out
