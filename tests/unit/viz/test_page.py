"""The page: whole, without anything outside it, and safe from what files are called."""

import base64
import html.parser
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from vt_flax.viz.page import Page, is_prediction_page


class Reader(html.parser.HTMLParser):
    """Collects elements as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def decoded(attributes):
    kind, _, content = attributes["src"].partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    assert kind == f"data:image/{image.format.lower()}"
    return np.asarray(image.convert("RGB"))


ENTRIES = [
    ("b10.png", [("zebra", 0.75), ("cat", 0.2)], 0.75),
    ("<script>\"a\"</script> & 'b2'.png", [("<b>ant</b>", 0.5)], 0.5),
    ("b9.png", [("cat", 0.995)], 0.995),
]


@pytest.fixture
def page(tmp_path):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, 9, 3), np.uint8)
    large = np.full((80, 100, 3), (200, 100, 30), np.uint8)
    with Page(tmp_path / "index.html", "Predictions <of> it") as it:
        for name, shares, confidence in ENTRIES:
            it.add(
                name,
                [small, large],
                scores=shares,
                confidence=confidence,
                colors=["#102030"] * len(shares),
                notes=["the first of 3 frames"],
                wide=[("what <it> shows", Image.fromarray(large))],
            )
        it.leave_out("c.png: <not> a readable image")
    return tmp_path / "index.html", small, large


def test_everything_is_in_it(page):
    path, small, large = page
    assert is_prediction_page(path)
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    text = path.read_text(encoding="utf-8")
    # Nothing is asked of a network, or of other files.
    assert not re.findall(r"https?:|//[a-z]|@import|url\(", text.split("</script>")[1])
    reader = Reader(text)
    assert {"script", "style", "article", "img"} <= {tag for tag, _ in reader.elements}
    for tag, attributes in reader.elements:
        assert not attributes.keys() & {"href", "srcset", "action", "data"}
        assert tag not in ("link", "iframe", "object", "base")
        if "src" in attributes:
            assert tag == "img" and attributes["src"].startswith("data:image/")
    (policy,) = [a["content"] for a in reader.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:;")
    shown = [
        tuple(int(attributes[side]) for side in ("width", "height"))
        for attributes in reader.all("img")
        if "width" in attributes
    ]
    assert shown == [(128, round(128 * 8 / 9)), (100, 80)] * 3
    images = [decoded(attributes) for attributes in reader.all("img")]
    assert len(images) == 3 * 3
    for i in range(0, 9, 3):
        # Small ones without loss.
        np.testing.assert_array_equal(images[i], small)
        for other in images[i + 1 : i + 3]:
            assert np.abs(other.astype(int) - large).max() <= 4


def test_what_it_says(page):
    reader = Reader(page[0].read_text(encoding="utf-8"))
    articles = reader.all("article")
    for i, (article, (name, shares, confidence)) in enumerate(
        zip(articles, ENTRIES, strict=True)
    ):
        assert article["data-name"] == name and article["data-class"] == shares[0][0]
        assert float(article["data-confidence"]) == confidence
        assert article["data-place"] == str(i)
    words = [word.strip() for word in reader.words if word.strip()]
    for name, shares, _ in ENTRIES:
        rows = [word for of, share in shares for word in (of, f"{100 * share:.2f} %")]
        # Below its name and the note.
        start = words.index(name) + 2
        assert words[start : start + len(rows)] == rows
    assert words.count("the first of 3 frames") == 3
    assert "c.png: <not> a readable image" in words
    assert [a["value"] for a in reader.all("meter")] == [
        *("0.7500", "0.2000", "0.5000", "0.9950")
    ]
    # Only the page's own script is one.
    assert len(reader.all("script")) == 1


SORT = """
const text = require("fs").readFileSync(process.argv[2], "utf8");
const script = text.match(/<script>([^]*?)<\\/script>/)[1];
const items = [...text.matchAll(/<article data-place="(.*?)" data-name="(.*?)" \
data-class="(.*?)" data-confidence="(.*?)">/g)].map((m) =>
  ({dataset: {place: m[1], name: m[2], class: m[3], confidence: m[4]}}));
const main = {children: items, append(...sorted) { this.children = sorted; }};
const buttons = [...text.matchAll(/<button data-key="(.*?)" onclick="(.*?)">/g)];
globalThis.document = {querySelector: () => main, querySelectorAll: () => []};
eval(script + `; for (const [, key, click] of buttons) for (const turn of [1, 2]) {
  eval(click); console.log(key, main.children.map((i) => i.dataset.place).join(""));
}`);
"""


def test_it_is_sorted(page, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no JavaScript here: node is not installed")
    (tmp_path / "sort.js").write_text(SORT)
    done = subprocess.run(
        [node, tmp_path / "sort.js", page[0]], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        *("place 012", "place 210"),
        # As people count: b9 before b10.
        *("name 120", "name 021"),
        *("class 120", "class 021"),
        # The surest first.
        *("confidence 201", "confidence 102"),
    ]


def test_what_was_done_before_a_failure_is_kept(tmp_path):
    path = tmp_path / "index.html"
    path.write_text("an earlier page")
    with pytest.raises(KeyboardInterrupt), Page(path, "a page") as page:
        page.add("a.png", [np.zeros((4, 4, 3), np.uint8)])
        assert path.read_text() == "an earlier page"
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
    reader = Reader(path.read_text())
    assert len(reader.all("article")) == 1 and reader.open[-1:] != ["main"]


def test_sections_and_a_legend(tmp_path):
    path = tmp_path / "page.html"
    legend = [("<b>road</b>", "#102030"), ("cañon", "#00ff00")]
    with Page(path, "T", generator="other", legend=legend, sort_keys={}) as page:
        page.add_section("Best <1>")
        # Without its confidence, an order by it would show no reason.
        page.add("a & b", [], scores=[("sky", 0.25)], confidence=0.875)
        page.add_section("Worst")
    reader = Reader(path.read_text(encoding="utf-8"))
    words = [word.strip() for word in reader.words if word.strip()]
    expected = ["T", "T", "<b>road</b>", "cañon", "Best <1>", "a & b"]
    expected += ["sky", "25.00 %", "confidence", "87.50 %", "Worst"]
    assert words == expected and not reader.all("button")
    styles = [attributes["style"] for attributes in reader.all("i")]
    assert styles == ["background:#102030", "background:#00ff00"]
    assert not is_prediction_page(path)
