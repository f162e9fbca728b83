"""One self-contained HTML page of images, the only HTML that is written."""

import base64
import functools
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from importlib import resources
from types import TracebackType
from typing import Any, Self

import jinja2
import numpy as np
from PIL import Image

# Longer side of an image in pixels. Images up to SMALL are stored without loss and
# enlarged, so that their pixels are visible.
SIDE = 320
SMALL, ENLARGED = 64, 128

PREDICT = "vt_flax predict"
# Keys that predictions are sorted by; the first click sorts descending if negative.
SORT_KEYS = {"place": 1, "name": 1, "class": 1, "confidence": -1}


def is_prediction_page(path: pathlib.Path) -> bool:
    """Returns whether a file is a page that `predict` has written."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return f'<meta name="generator" content="{PREDICT}">' in file.read(1000)
    except OSError:
        return False


class Page:
    """A page that is written image by image; closing it puts it in place.

    It is whole even if an exception ends it early.

    Args:
      path: HTML file to write.
      title: heading of the page.
      description: a sentence or two below the title.
      generator: command that writes the page.
      legend: names and CSS colors.
      sort_keys: of SORT_KEYS; empty for images that stay in order.

    Raises:
      OSError: if it cannot be written.
    """

    def __init__(
        self,
        path: pathlib.Path,
        title: str,
        description: str = "",
        *,
        generator: str = PREDICT,
        legend: Sequence[tuple[str, str]] = (),
        sort_keys: Mapping[str, int] = SORT_KEYS,
    ):
        self._path, self._partial = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._file = self._partial.open("w", encoding="utf-8")
        self._count = 0
        self._left_out: list[str] = []
        self._write("head", title, description, generator, legend, sort_keys)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the page, with the images that were added until now."""
        try:
            with self._file:
                self._write("tail", self._left_out)
            self._partial.replace(self._path)
        except OSError:
            self._partial.unlink(missing_ok=True)
            raise

    def add_section(self, heading: str) -> None:
        """Adds a heading above the images that follow."""
        self._write("section", heading)

    def add(
        self,
        name: str,
        images: Sequence[np.ndarray],
        *,
        scores: Sequence[tuple[str, float]] = (),
        confidence: float = 0.0,
        colors: Sequence[str] = (),
        notes: Sequence[str] = (),
        wide: Sequence[tuple[str, Image.Image]] = (),
    ) -> None:
        """Adds an image, with other pictures of it beside and below.

        Args:
          name: heading of the image.
          images: (H, W, 3), uint8, side by side.
          scores: a table of classes with values from 0 to 1, best first.
          confidence: sort key, from 0 to 1.
          colors: CSS colors of the classes in `scores`; empty for none.
          notes: lines below the name.
          wide: descriptions and pictures below all else.

        Raises:
          OSError: if it cannot be written.
        """
        shown = [_sized(Image.fromarray(pixels)) for pixels in images]
        below = [(text, _data_url(picture, "JPEG")) for text, picture in wide]
        self._write(
            *("article", self._count, name, scores, confidence, colors, notes),
            *(shown, below),
        )
        self._count += 1

    def leave_out(self, line: str) -> None:
        """Lists an image that could not be read at the end of the page."""
        self._left_out.append(line)

    def _write(self, macro: str, *args: Any) -> None:
        self._file.write(getattr(_template(), macro)(*args).lstrip("\n"))


@functools.cache
def _template() -> Any:
    """Returns the macros of page.html.j2."""
    text = resources.files("vt_flax.viz").joinpath("page.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text).module


def _sized(image: Image.Image) -> dict[str, Any]:
    """Returns an image as the template takes it."""
    small = max(image.size) <= SMALL
    scale = ENLARGED / max(image.size) if small else 1
    # The short side of a very long image is one pixel at least.
    width, height = (max(1, round(side * scale)) for side in image.size)
    source = _data_url(image, "PNG" if small else "JPEG")
    return {"small": small, "width": width, "height": height, "source": source}


def _data_url(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    options = {"quality": 85, "subsampling": 0} if kind == "JPEG" else {}
    image.save(buffer, kind, **options)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"
