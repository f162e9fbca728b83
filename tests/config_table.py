"""The table of every key in docs/configuration.md, made of the defaults' own source.

python tests/config_table.py    writes it
"""

import ast
import inspect
import io
import textwrap
import tokenize

from doc_pages import ROOT

from vt_flax.training.config import default_config

PAGE = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- keys -->\n", "<!-- end of keys -->\n"


def table() -> str:
    """Returns the table: a line for each key, with its default and its comments."""
    source = textwrap.dedent(inspect.getsource(default_config))
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").strip()
            if token.line.lstrip().startswith("#"):
                alone.add(token.start[0])

    def told(key: ast.expr, value: ast.expr) -> str:
        """Joins the comments above a key and behind its value."""
        first = key.lineno
        while first - 1 in alone:
            first -= 1
        lines = [comments[i] for i in range(first, key.lineno)]
        if not isinstance(value, ast.Dict) and value.end_lineno not in alone:
            lines += [comments.get(value.end_lineno, "")]
        text = " ".join(line for line in lines if line).removesuffix(".")
        # TPUs, but: a workdir.
        return text if text[1:2].isupper() else text[:1].lower() + text[1:]

    lines: list[str] = []

    def add(section: ast.Dict, prefix: str) -> None:
        for key, value in zip(section.keys, section.values, strict=True):
            name = f"{prefix}{ast.literal_eval(key)}"
            if isinstance(value, ast.Dict):
                if about := told(key, value):
                    lines.append(f"| `{name}` | | {about} |")
                add(value, f"{name}.")
                continue
            default = repr(ast.literal_eval(value)).replace("'", '"')
            lines.append(f"| `{name}` | `{default}` | {told(key, value)} |")

    (function,) = ast.parse(source).body
    add(function.body[-1].value.args[0], "")
    return "\n".join(["| key | default | what |", "|---|---|---|", *lines]) + "\n"


def written(text: str) -> str:
    """Returns a page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has no place for the table"
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
