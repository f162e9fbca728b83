"""The table of every key in docs/configuration.md, made from the schema.

python tests/helpers/config_table.py    writes it
"""

from doc_pages import ROOT

from vt_flax.training.config_schema import KEYS

PAGE = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- keys -->\n", "<!-- end of keys -->\n"


def table() -> str:
    """Returns the table, a line for each key."""
    lines = ["| key | default | allowed | what |", "|---|---|---|---|"]
    for name, key in KEYS.items():
        default = repr(key.default).replace("'", '"')
        lines.append(f"| `{name}` | `{default}` | {key.allowed()} | {key.doc} |")
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """Returns a page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has no place for the table"
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
