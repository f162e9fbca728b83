"""The command `predict`, with networks that need no training."""

import base64
import html.parser
import io
import json
import shutil
import sys

import matplotlib
import numpy as np
import pytest
from image_files import with_orientation
from PIL import Image
from tiny_networks import CANVAS, NAMES, classifier, segmenter

from vt_flax.cli import predict, startup
from vt_flax.inference import predictor
from vt_flax.inference.reading import read_picture
from vt_flax.viz import gallery, token_pictures


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
    # The second time what was drawn is no image of the folder.
    photo().save(tmp_path / "in" / "out" / "x.png")
    assert run("classifier", "--out", "in/out", "in")[2] == errors


def test_what_is_drawn_is_what_the_network_sowed(run, networks, tmp_path, monkeypatch):
    """The arrays that are drawn, and the pixels of the picture in its file."""
    given = []
    render = token_pictures.render

    def watched(pictures):
        given.extend(pictures)
        return render(pictures)

    monkeypatch.setattr(gallery, "render", watched)
    for i in range(2):
        photo(seed=i).save(tmp_path / f"{i}.png")
    status, _, errors = run("classifier", "--out", "out", "--tokens", "*.png")
    assert (status, errors) == (0, ["wrote out/index.html"])
    network = networks["classifier"]
    for i, picture in enumerate(given):
        # By Flax alone, from the crop.
        data = network.task.config.data
        inputs = network.view(tmp_path / f"{i}.png").pixels[None] / 255
        inputs = (inputs - np.asarray(data.mean)) / np.asarray(data.std)
        _, sown = network.model.apply(
            *(network.variables, inputs.astype(np.float32)),
            train=False,
            mutable=["intermediates"],
        )
        stage = sown["intermediates"]["stage5"]
        ((first, second),) = picture.rows
        assert first.heading == "module1: static tokenizer"
        assert second.heading == "module2: dynamic tokenizer, mean of 2 heads"
        for block, module in ((first, "module1"), (second, "module2")):
            (maps,) = stage[module]["tokenizer"]["coefficients"]
            maps = np.asarray(maps[0], np.float64)
            maps = maps.mean(0) if maps.ndim == 4 else maps
            assert block.maps.shape == maps.shape
            np.testing.assert_allclose(block.maps, maps, rtol=1e-4)
            np.testing.assert_allclose(block.maps.sum((1, 2)), 1, rtol=1e-5)
        assert (first.first, second.first) == (0, 4)
        check_panels(tmp_path / "out" / f"{i}_tokens.png", picture)


def check_panels(file, picture):
    """Finds the panels of each token in a file, and reads a coefficient from each."""
    drawn = np.asarray(Image.open(file).convert("RGB")).astype(int)
    side = token_pictures.PANEL
    grey = Image.fromarray(picture.image).resize((side, side), Image.Resampling.NEAREST)
    grey = 0.35 * np.asarray(grey).mean(-1, keepdims=True) / 255
    for block in picture.rows[0]:
        for map_ in block.maps:
            heat = Image.fromarray(map_).resize((side, side), Image.Resampling.BILINEAR)
            scaled = (np.asarray(heat) - map_.min()) / np.ptp(map_)
            panel = grey + 0.75 * matplotlib.colormaps["inferno"](scaled)[..., :3]
            panel = np.round(255 * np.clip(panel, 0, 1)).astype(int)[40:]
            height, width = panel.shape[:2]
            places = zip(
                *(np.abs(drawn - panel[0, 0]) <= 1).all(-1).nonzero(), strict=True
            )
            assert any(
                np.abs(part - panel).max() <= 1
                for y, x in places
                if (part := drawn[y : y + height, x : x + width]).shape == panel.shape
            )


def test_masks_and_projections(run, networks, tmp_path):
    photo(*CANVAS).save(tmp_path / "fits.png")
    long = 251 * "l"
    photo(61, 90).save(tmp_path / f"{long}.jpg")
    status, out, _ = run(
        *("segmenter", "--out", "out", "--tokens", "--heads", "--format", "json"),
        *("--top", "9", "fits.png", f"{long}.jpg"),
    )
    assert status == 0
    levels = [f"_level{i}_projector_heads" for i in (2, 3, 4, 5)]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "index.html",
        *(f"{n}{k}.png" for n in ("fits", 200 * "l") for k in ("", "_tokens", *levels)),
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


def test_all_kinds_of_files_at_once(run, tmp_path):
    photo().convert("RGBA").save(tmp_path / "a.png")
    photo().save(
        tmp_path / "b.gif", save_all=True, append_images=[photo(seed=1), photo(seed=2)]
    )
    photo(1, 2000).save(tmp_path / "c.png")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(tmp_path / "d.png")
    (tmp_path / "e.png").write_bytes((tmp_path / "a.png").read_bytes()[:99])
    (tmp_path / "f.jpg").write_bytes(b"")
    (tmp_path / "g.png").mkdir()
    photo().save(tmp_path / "g.png" / "inside.png")
    for kind in ("classifier", "segmenter"):
        status, out, errors = run(
            kind, "--format", "json", "--out", f"out_{kind}", "--tokens", "."
        )
        assert status == 2
        names = [row["image"] for row in json.loads(out)]
        assert names == ["a.png", "b.gif", "c.png", "d.png", "g.png/inside.png"]
        for name in ("e.png", "f.jpg"):
            assert sum(f"error: {name}: not a" in e for e in errors) == 1
        assert "note: b.gif: the first of 3 frames" in errors
        assert "note: d.png: 16 bits converted to 8: 65,535 is white" in errors
        assert errors[-2:] == [
            f"wrote out_{kind}/index.html",
            "error: 2 of 7 files are no readable images",
        ]
        assert len(errors) == 6
        shutil.rmtree(tmp_path / f"out_{kind}")


def test_orientation_is_ignored_where_asked(run, tmp_path):
    photo().save(tmp_path / "turned.png", **with_orientation(6))
    photo().save(tmp_path / "plain.png")
    rows = {}
    for words in ((), ("--ignore_orientation",)):
        _, out, _ = run(
            *("classifier", "--format", "json", *words, "plain.png", "turned.png")
        )
        plain, turned = json.loads(out)
        rows[words] = [{**row, "image": ""} for row in (plain, turned)]
    assert rows[()][0] != rows[()][1]
    assert rows["--ignore_orientation",] == [rows[()][0]] * 2


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--top", "0", "a.png"], "--top 0: must be at least 1"),
        (["--batch", "0", "a.png"], "--batch 0: must be at least 1"),
        (["--heads", "a.png"], "--heads needs --tokens"),
        (["--tokens", "a.png"], "--out FOLDER is missing"),
        (["*.webp"], "*.webp: no image matches this pattern"),
        (["empty"], "empty: no images in this folder"),
        (["--out", "a.png", "a.png"], "--out a.png: File exists"),
        (["--out", "a.png/x", "a.png"], "--out a.png/x: Not a directory"),
    ],
)
def test_bad_input_is_one_line(arguments, match, run, tmp_path):
    photo().save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    status, out, errors = run("classifier", *arguments)
    assert (status, out) == (2, "")
    assert len(errors) == 1 and errors[0].startswith(f"error: {match}")


def test_files_of_others_are_not_replaced(run, tmp_path):
    """Those of an earlier predict are, as often as it is run."""
    photo(*CANVAS).save(tmp_path / "photo.png")
    told = "is there and not made by predict: choose another --out, or give --overwrite"
    for name in ("photo.png", "index.html"):
        theirs = tmp_path / f"out_{name}" / name
        theirs.parent.mkdir()
        theirs.write_text("<title>mine</title>")
        arguments = ("segmenter", "--out", theirs.parent.name, "photo.png")
        status, out, errors = run(*arguments)
        assert (status, out) == (2, "")
        assert errors == [f"error: --out {theirs.parent.name}: {name} {told}"]
        assert [*theirs.parent.iterdir()] == [theirs]
        assert theirs.read_text() == "<title>mine</title>"
        assert run(*arguments, "--overwrite")[0] == 0
        names = {path.name for path in theirs.parent.iterdir()}
        assert names == {"photo.png", "index.html"}
        assert theirs.read_bytes() != b"<title>mine</title>"
        # It is its own now.
        (theirs.parent / "photo.png").write_bytes(b"")
        assert run(*arguments)[0] == 0
        assert (theirs.parent / "photo.png").stat().st_size
    # A folder with other files only is nobody's to guard.
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    assert run("segmenter", "--out", "notes", "photo.png")[0] == 0


def test_a_file_that_is_called_like_a_home_folder(run, tmp_path):
    photo().save(tmp_path / "~nosuchuser.png")
    for name in (".", "*.png", "~nosuchuser.png"):
        status, out, errors = run("classifier", "--format", "json", name)
        assert (status, errors) == (0, [])
        assert [row["image"] for row in json.loads(out)] == ["~nosuchuser.png"]
    status, _, errors = run("classifier", "--out", "~nosuchuser", "~nosuchuser.png")
    assert (status, errors) == (0, ["wrote ~nosuchuser/index.html"])


def test_names_that_lead_nowhere_are_bad_images(run, tmp_path):
    """A link to itself, and more letters than a name may have."""
    photo().save(tmp_path / "a.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    long = 300 * "n" + ".png"
    arguments = ("--out", "out", "--tokens", "--format", "json")
    status, out, errors = run("classifier", *arguments, "loop.png", long, "a.png")
    assert status == 2
    assert [row["image"] for row in json.loads(out)] == ["a.png"]
    assert errors == [
        "error: loop.png: Too many levels of symbolic links",
        f"error: {long}: File name too long",
        "wrote out/index.html",
        "error: 2 of 3 files are no readable images",
    ]


def test_a_name_gives_the_terminal_no_orders(run, tmp_path):
    photo().save(tmp_path / "a\x1b[2J.png")
    (tmp_path / "b\x1b[2J.png").write_text("no image")
    _, out, errors = run("classifier", "a\x1b[2J.png", "b\x1b[2J.png")
    assert r"a\x1b[2J.png" in out
    assert errors[0].startswith(r"error: b\x1b[2J.png: ")
    # Also where it is what a command ends with.
    assert run("classifier", "c\x1b*.png")[2] == [
        r"error: c\x1b*.png: no image matches this pattern"
    ]


def test_a_large_image_is_held_once():
    """What is kept of it for pictures is small, whatever it was."""
    picture = read_picture(np.zeros((1500, 4000, 3), np.uint8))
    shown = gallery.Shown.of("a", picture)
    assert max(shown.pixels.shape) == gallery.MASK_SIDE
    assert shown.pixels.base is not picture.pixels
