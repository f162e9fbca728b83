"""One HTML file with images, what a network says of them, and nothing outside it."""

import base64
import html
import io
import os
import pathlib
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

# The longer side of an image in pixels. Smaller ones are stored without loss, and shown
# larger, so that their pixels are seen.
SIDE = 320
SMALL, ENLARGED = 64, 128

# By which a page of ours is known.
MARK = '<meta name="generator" content="vt_flax predict">'
HEAD = """<!doctype html><html lang="en"><meta charset="utf-8">
{mark}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em; max-width: 100em }}
article {{ border-top: 1px solid #ccc; padding: .6em 0 }}
h2 {{ font-size: 1em; margin: .2em 0; overflow-wrap: anywhere }}
.row {{ display: flex; flex-wrap: wrap; gap: 1em }}
.row > * {{ align-self: flex-start }}
.row img.small {{ image-rendering: pixelated }}
img.wide {{ max-width: 100%; display: block; margin-top: .6em }}
td {{ padding: 0 .6em 0 0 }} td.number {{ text-align: right }}
meter {{ width: 12em }}
i {{ display: inline-block; width: .8em; height: .8em; margin-right: .4em }}
button {{ font: inherit }} button.on {{ font-weight: bold }}
.note {{ color: #555; margin: .2em 0 }}
</style>
<script>
// Sorts the images; a second click turns the order round.
let order = {{key: "", sign: 1}};
function sortBy(key, sign) {{
  order = {{key, sign: order.key === key ? -order.sign : sign}};
  const main = document.querySelector("main");
  const value = (item) => item.dataset[key];
  const compare = key === "name" || key === "class"
    ? (a, b) => value(a).localeCompare(value(b), undefined, {{numeric: true}})
    : (a, b) => value(a) - value(b);
  const items = [...main.children].sort((a, b) => order.sign * compare(a, b));
  main.append(...items);
  for (const button of document.querySelectorAll("button")) {{
    const on = button.dataset.key === key;
    button.classList.toggle("on", on);
    button.querySelector("span").textContent =
      on ? (order.sign > 0 ? " \\u2191" : " \\u2193") : "";
  }}
}}
</script>
<h1>{title}</h1>
<p>{said}</p>
<p>Sort by {buttons}</p>
<main>
"""
KEYS = (("place", 1), ("name", 1), ("class", 1), ("confidence", -1))


def is_page(path: pathlib.Path) -> bool:
    """Tells whether a file is a page that `Page` has written."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return MARK in file.read(1000)
    except OSError:
        return False


class Page:
    """A page that is written image by image, and stays whole if that is broken off.

    It is there, under its name, once it is closed.

    Args:
      path: file to write.
      title: of the page.
      said: what its figures are.

    Raises:
      OSError: if it cannot be written.
    """

    def __init__(self, path: pathlib.Path, title: str, said: str = ""):
        self._path, self._partial = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._file = self._partial.open("w", encoding="utf-8")
        self._count = 0
        self._refused: list[str] = []
        buttons = " ".join(
            f'<button data-key="{key}" onclick="sortBy(\'{key}\', {sign})">{key}'
            "<span></span></button>"
            for key, sign in KEYS
        )
        title, said = html.escape(title), html.escape(said)
        self._file.write(
            HEAD.format(mark=MARK, title=title, said=said, buttons=buttons)
        )

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the page, with what is in it by now."""
        try:
            with self._file:
                self._file.write("</main>\n")
                if self._refused:
                    lines = (f"<li>{html.escape(line)}" for line in self._refused)
                    self._file.write(f"<h2>Left out</h2><ul>{''.join(lines)}</ul>\n")
            self._partial.replace(self._path)
        except OSError:
            self._partial.unlink(missing_ok=True)
            raise

    def add(
        self,
        name: str,
        shares: Sequence[tuple[str, float]],
        confidence: float,
        pictures: Sequence[np.ndarray],
        wide: Sequence[tuple[str, Image.Image]] = (),
        colours: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """Adds an image.

        Args:
          name: of the image.
          shares: classes with their probabilities or their shares of the pixels.
          confidence: what it can be sorted by.
          pictures: (H, W, 3), uint8, shown side by side.
          wide: what they show, and pictures that are shown below.
          colours: of the classes in the picture, as in `#12ab00`; empty for none.
          notes: what is to be known of it.

        Raises:
          OSError: if it cannot be written.
        """
        attributes = {
            "place": self._count,
            "name": name,
            "class": shares[0][0],
            "confidence": f"{confidence:.6f}",
        }
        data = "".join(
            f' data-{key}="{html.escape(str(value))}"'
            for key, value in attributes.items()
        )
        self._file.write(f"<article{data}><h2>{html.escape(name)}</h2>\n")
        for note in notes:
            self._file.write(f'<p class="note">{html.escape(note)}</p>\n')
        self._file.write('<div class="row">')
        for picture in pictures:
            self._file.write(_picture(picture))
        told = confidence if confidence != shares[0][1] else None
        self._file.write(f"{_table(shares, colours, told)}</div>\n")
        for said, picture in wide:
            self._file.write(
                f'<img class="wide" alt="{html.escape(said)}" '
                f'src="{_inline(picture, small=False)}">\n'
            )
        self._file.write("</article>\n")
        self._count += 1

    def leave_out(self, line: str) -> None:
        """Notes at the end what was left out."""
        self._refused.append(line)


def _table(
    shares: Sequence[tuple[str, float]],
    colours: Sequence[str],
    confidence: float | None,
) -> str:
    rows = []
    for i, (name, share) in enumerate(shares):
        square = f'<i style="background:{colours[i]}"></i>' if colours else ""
        rows.append(
            f"<tr><td>{square}{html.escape(name)}"
            f'<td class="number">{100 * share:.2f} %'
            f'<td><meter value="{share:.4f}"></meter>'
        )
    if confidence is not None:
        rows.append(
            f'<tr><td>confidence<td class="number">{100 * confidence:.2f} %<td>'
        )
    return f"<table>{''.join(rows)}</table>"


def _picture(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    small = max(image.size) <= SMALL
    kind = ' class="small"' if small else ""
    # Of very long images the short side is a pixel at least.
    scale = ENLARGED / max(image.size) if small else 1
    width, height = (max(1, round(side * scale)) for side in image.size)
    return (
        f'<img alt=""{kind} width="{width}" height="{height}" '
        f'src="{_inline(image, small=small)}">'
    )


def _inline(image: Image.Image, *, small: bool) -> str:
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=85, subsampling=0)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
