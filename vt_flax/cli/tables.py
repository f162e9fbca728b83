"""Records printed as tables or JSON."""

import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from vt_flax.texts import json_text, printable

# Width of tables in files and pipes, in characters: nothing is wrapped.
WIDEST = 1_000_000


def print_rows(
    rows: Sequence[dict[str, Any]],
    form: str,
    title: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Prints records as a table or as JSON.

    Args:
      rows: records, all with the same keys.
      form: `table` or `json`, a list of the records without title and notes, in which
        numbers that are not finite are null.
      title: line above the table.
      notes: lines below the table.
    """
    if form == "json":
        print(json_text(list(rows)))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for key in rows[0] if rows else ():
        number = any(isinstance(row[key], (int, float)) for row in rows)
        # Long text is wrapped, since rows that are cut off may look the same.
        table.add_column(
            printable(key),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="ellipsis" if number else "fold",
        )
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    width = None if sys.stdout.isatty() else WIDEST
    # Class names may contain [x] or :x:, which rich would take for markup.
    console = Console(
        file=sys.stdout, width=width, highlight=False, markup=False, emoji=False
    )
    if title:
        console.print(printable(title), soft_wrap=True)
    console.print(table)
    for note in notes:
        console.print(printable(note), soft_wrap=True)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return printable(str(value))


def print_results(results: dict[str, dict[str, float]], form: str, split: str) -> None:
    """Prints the results of an evaluation, one record for each set of weights.

    As a table, results named `KIND/CLASS` are a second table, one row for each class.
    """
    rows = [
        {"weights": name} | {key: _rounded(key, value) for key, value in result.items()}
        for name, result in results.items()
    ]
    if form == "json":
        print_rows(rows, form)
        return
    print_rows(
        [{k: v for k, v in row.items() if "/" not in k} for row in rows],
        form,
        f"Evaluation on {split} (in percent, except the loss)",
    )
    classes = []
    for key in rows[0]:
        kind, slash, name = key.partition("/")
        if slash:
            values = {f"{row['weights']} {kind}": row[key] for row in rows}
            classes.append({"class": name, **values})
    if classes:
        print_rows(classes, form)


def _rounded(key: str, value: float | None) -> float | None:
    return value if value is None else round(value, 5 if key == "loss" else 3)
