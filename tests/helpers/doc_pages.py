"""README.md and the pages in docs: their blocks, commands, links and tables."""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page, by the line of its first fence."""

    page: pathlib.Path
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page.name}:{self.line}"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page, with what the page has exported before."""

    place: str
    words: tuple[str, ...]
    exported: tuple[tuple[str, str], ...]

    def __str__(self):
        return f"{self.place} {' '.join(self.words)[:40]}"


def blocks(page: pathlib.Path) -> Iterator[Block]:
    """Yields the fenced blocks of a page."""
    fence, inside = None, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            if fence:
                inside.append(line)
        elif fence:
            yield Block(page, *fence, "\n".join(inside))
            fence = None
        else:
            fence, inside = (number, line[3:].strip()), []
    assert fence is None, f"{page}: the block of line {fence} has no end"


def prose(page: pathlib.Path) -> str:
    """Returns a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def commands(page: pathlib.Path) -> Iterator[Command]:
    """Yields the commands of a page's bash blocks."""
    exported: dict[str, str] = {}
    for block in blocks(page):
        if block.language != "bash":
            continue
        lines = block.text.replace("\\\n", " ").splitlines()
        for line in lines:
            reader = shlex.shlex(line, posix=True, punctuation_chars=True)
            reader.whitespace_split = True
            words = tuple(reader)
            if words[:1] == ("export",):
                exported |= dict(word.split("=", 1) for word in words[1:])
            if words:
                yield Command(str(block), words, tuple(exported.items()))


def tables(page: pathlib.Path) -> Iterator[list[dict[str, str]]]:
    """Yields the tables of a page, each a list of rows by the names of the columns."""
    for found in re.finditer(r"(?:^\|.*\n)+", prose(page) + "\n", flags=re.M):
        head, _, *rows = (cells(line) for line in found[0].splitlines())
        assert len({*head}) == len(head), f"{page}: two columns of one name: {head}"
        yield [dict(zip(head, row, strict=True)) for row in rows]


def cells(line: str) -> list[str]:
    """Returns the cells of a table's line."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
