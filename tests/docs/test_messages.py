"""Messages that docs/troubleshooting.md quotes are still said by the code."""

import ast
import re

import doc_pages
import pytest
from doc_pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
# Stands for what a message has of its own each time.
HOLE = "\0"
# So many letters must be constant, or anything would do.
LEAST = 6


MESSAGES = [
    row["message"].strip("`")
    for table in doc_pages.tables(PAGE)
    for row in table
    if "message" in row
]


def of_python(text):
    """Yields the strings of a module; an f-string with holes for its values."""

    def value(node):
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(map(value, node.values))
        if isinstance(node, ast.BinOp):
            return value(node.left) + value(node.right)
        return HOLE

    nodes = [*ast.walk(ast.parse(text))]
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)):
            if node not in docstrings:
                yield value(node)


def of_shell(text):
    """Yields the lines of a script, with holes for its variables."""
    text = text.replace("\\\n", " ")
    yield from re.sub(r"\$\{[^}]*\}|\$\w+|\$\([^)]*\)", HOLE, text).splitlines()


@pytest.fixture(scope="module")
def told():
    found = []
    for path in sorted((ROOT / "vt_flax").rglob("*.py")):
        found += of_python(path.read_text())
    for path in sorted((ROOT / "launch").rglob("*.sh")):
        found += of_shell(path.read_text())
    return [text for text in found if len(text) >= LEAST]


def is_told(message, told):
    """Tells whether a string has the message's constant parts, in their order."""
    # Of four dots the first is the message's own.
    parts = re.split(r"\.{3}(?!\.)", message.strip(". "))
    pattern = re.compile(".*?".join(map(re.escape, parts)), re.S)
    return any(pattern.search(text) for text in told)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_still_told(message, told):
    assert sum(map(len, re.findall(r"\w+", message.replace("...", "")))) >= LEAST
    assert is_told(message, told)


def test_a_message_that_no_code_has_is_noticed(told):
    assert not is_told("config.... is not a key of the configuration", told)
    assert not is_told("is no key of the ... configuration config.", told)
