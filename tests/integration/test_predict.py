"""The command `predict`, with networks that need no training."""

import base64
import functools
import html.parser
import io
import json
import sys

import jax
import numpy as np
import pytest
from image_files import with_orientation
from PIL import Image
from tiny_networks import CANVAS, NAMES, classifier, segmenter

from vt_flax.cli import predict, startup
from vt_flax.inference import predictor
from vt_flax.inference.reading import read_picture
from vt_flax.inference.views import view_of
from vt_flax.viz import gallery


def photo(height=30, width=40, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def networks():
    return {"classifier": classifier(batch=3), "segmenter": segmenter(batch=3)}


@pytest.fixture
def run(networks, tmp_path, monkeypatch, capsys):
    """Runs the command and returns exit status, output, and lines of errors."""

    def run(kind, *arguments):
        def load(workdir, overrides, *, step, best, batch):
            return networks[kind]  # whose batch is 3, so that it is compiled once

        monkeypatch.setattr(predictor, "load", load)
        words = ["predict", "--workdir", "run", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        status = 0
        try:
            startup.run(predict.main)
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        return status, said.out, said.err.splitlines()

    monkeypatch.chdir(tmp_path)
    return run


def articles(page):
    """Returns what the page says of each image, by name."""
    found = {}

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            attributes = dict(attrs)
            if tag == "article":
                found[attributes["data-name"]] = self.own = {**attributes, "images": []}
            if tag == "img":
                content = attributes["src"].partition("base64,")[2]
                image = Image.open(io.BytesIO(base64.b64decode(content)))
                self.own["images"].append(np.asarray(image.convert("RGB")))

    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    reader.close()
    return found


def test_folders_and_the_page(run, networks, tmp_path):
    """More images than a batch, some in folders of folders, one no image."""
    (tmp_path / "in" / "more").mkdir(parents=True)
    for i in range(4):
        photo(seed=i).save(tmp_path / "in" / f"{i}.png")
    photo(seed=4).save(tmp_path / "in" / "more" / "2.jpg", quality=95)
    (tmp_path / "in" / "broken.png").write_text("no image")
    status, out, errors = run(
        "classifier", "--format", "json", "--top", 2, "--out", "in/out", "in"
    )
    assert status == 2
    names = [f"in/{i}.png" for i in range(4)] + ["in/more/2.jpg"]
    rows = json.loads(out)
    assert [row["image"] for row in rows] == names
    assert errors == [
        "error: in/broken.png: not an image in a format that is known",
        "wrote in/out/index.html",
        "error: 1 of 6 files are no readable images",
    ]
    page = articles(tmp_path / "in" / "out" / "index.html")
    assert list(page) == names
    for row in rows:
        assert list(row) == [
            *("image", "class 1", "probability 1", "class 2", "probability 2")
        ]
        (own,) = networks["classifier"].predict(row["image"])
        for i, (name, share) in enumerate(own.scores[:2], 1):
            assert row[f"class {i}"] == name
            assert row[f"probability {i}"] == pytest.approx(share, abs=1e-4)
        entry = page[row["image"]]
        assert entry["data-class"] == row["class 1"]
        assert float(entry["data-confidence"]) == pytest.approx(
            row["probability 1"], abs=1e-4
        )
        (thumbnail,) = entry["images"]
        expected = np.asarray(Image.open(tmp_path / row["image"]).convert("RGB"))
        assert np.abs(thumbnail.astype(int) - expected).max() <= 8
    assert "in/broken.png" in (tmp_path / "in" / "out" / "index.html").read_text()
    # A second run replaces its own page, and does not predict what was drawn.
    photo().save(tmp_path / "in" / "out" / "x.png")
    assert run("classifier", "--out", "in/out", "in")[2] == errors


def test_what_is_drawn_is_what_the_network_sowed(run, networks, tmp_path, monkeypatch):
    given = []

    def render(pictures):
        given.extend(pictures)
        return photo()

    monkeypatch.setattr(gallery, "render", render)
    photo().save(tmp_path / "a.png")
    status, _, errors = run("classifier", "--out", "out", "--tokens", "a.png")
    assert (status, errors) == (0, ["wrote out/index.html"])
    assert (tmp_path / "out" / "a_tokens.png").exists()
    # By Flax alone, from the crop.
    network = networks["classifier"]
    data = network.task.config.data
    inputs = view_of(read_picture(tmp_path / "a.png"), network.task).pixels[None] / 255
    inputs = (inputs - np.asarray(data.mean)) / np.asarray(data.std)
    apply = functools.partial(
        network.model.apply, train=False, mutable=["intermediates"]
    )
    _, sown = jax.jit(apply)(network.variables, inputs.astype(np.float32))
    stage = sown["intermediates"]["stage5"]
    (picture,) = given
    ((first, second),) = picture.rows
    assert first.heading == "module1: static tokenizer"
    assert second.heading == "module2: dynamic tokenizer, mean of 2 heads"
    for block, module in ((first, "module1"), (second, "module2")):
        (maps,) = stage[module]["tokenizer"]["coefficients"]
        maps = np.asarray(maps[0], np.float64)
        maps = maps.mean(0) if maps.ndim == 4 else maps
        assert block.maps.shape == maps.shape
        np.testing.assert_allclose(block.maps, maps, rtol=1e-4)
    assert (first.first, second.first) == (0, 4)


def test_masks_and_projections(run, networks, tmp_path):
    photo(61, 90).save(tmp_path / "large.jpg")
    status, out, _ = run(
        *("segmenter", "--out", "out", "--tokens", "--heads", "--format", "json"),
        *("--top", "9", "large.jpg"),
    )
    assert status == 0
    levels = [f"_level{i}_projector_heads" for i in (2, 3, 4, 5)]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "index.html",
        *(f"large{kind}.png" for kind in ("", "_tokens", *levels)),
    }
    page = articles(tmp_path / "out" / "index.html")
    for row in json.loads(out):
        (own,) = networks["segmenter"].predict(row["image"])
        assert row["confidence"] == pytest.approx(own.confidence, abs=1e-4)
        assert row["class 1"] == own.scores[0][0] in NAMES
        # As many as there are classes.
        assert "class 3" in row and "class 4" not in row
        # The image, the mask over it, tokens, and each level's heads.
        assert len(page[row["image"]]["images"]) == 7


def test_notes_and_unreadable_files(run, tmp_path):
    """Without --out a segmentation network prints areas, and draws nothing."""
    photo().save(tmp_path / "a.gif", save_all=True, append_images=[photo(seed=1)])
    (tmp_path / "b.jpg").write_bytes(b"")
    photo().save(tmp_path / "turned.png", **with_orientation(6))
    photo().save(tmp_path / "upright.png")
    for words in ((), ("--ignore_orientation",)):
        status, out, errors = run("segmenter", "--format", "json", *words, ".")
        assert status == 2
        rows = {row.pop("image"): row for row in json.loads(out)}
        assert list(rows) == ["a.gif", "turned.png", "upright.png"]
        assert (rows["turned.png"] == rows["upright.png"]) == bool(words)
        assert errors == [
            "note: a.gif: the first of 2 frames",
            "error: b.jpg: not an image in a format that is known",
            "error: 1 of 4 files are no readable images",
        ]
    assert len([*tmp_path.iterdir()]) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--top", "0", "a.png"], "--top 0: must be at least 1"),
        (["--heads", "a.png"], "--heads needs --tokens"),
        (["--tokens", "a.png"], "--tokens needs --out"),
        (["*.webp"], "*.webp: no file matches this pattern"),
        (["--out", "a.png", "a.png"], "--out a.png: Not a directory"),
        (["--out", ".", "a.png"], "--out .: is the folder of a.png"),
        # Names give the terminal no orders.
        (["c\x1b*.png"], r"c\x1b*.png: no file matches"),
    ],
)
def test_bad_input_is_one_line(arguments, message, run, tmp_path):
    photo().save(tmp_path / "a.png")
    status, out, errors = run("classifier", *arguments)
    assert (status, out) == (2, "")
    assert len(errors) == 1 and errors[0].startswith(f"error: {message}")


def test_files_of_others_are_not_replaced(run, tmp_path):
    """Those of an earlier predict are, as often as it is run."""
    photo(*CANVAS).save(tmp_path / "photo.png")
    theirs = tmp_path / "out" / "photo.png"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    arguments = ("segmenter", "--out", "out", "photo.png")
    status, out, errors = run(*arguments)
    assert (status, out, len(errors)) == (2, "", 1)
    assert "--out out: holds files that predict has not made" in errors[0]
    assert [*theirs.parent.iterdir()] == [theirs] and theirs.read_text() == "mine"
    assert run(*arguments, "--overwrite")[0] == 0
    assert {path.name for path in theirs.parent.iterdir()} == {
        "photo.png",
        "index.html",
    }
    # It is its own now.
    theirs.write_bytes(b"")
    assert run(*arguments)[0] == 0 and theirs.stat().st_size


def test_images_with_one_name_have_pictures_of_their_own(run, tmp_path):
    names = ("a.png", "b/a.png", "c/a.jpg", "a_tokens.png")
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo(*CANVAS, seed=i).save(tmp_path / name)
    assert run("segmenter", "--out", "out", "--tokens", *names)[0] == 0
    stems = ("a", "a_1", "a_2", "a_tokens_3")
    expected = {f"{stem}{kind}.png" for stem in stems for kind in ("", "_tokens")}
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == expected | {"index.html"}
