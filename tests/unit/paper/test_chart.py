"""The chart: what is drawn, read from the figure, and the files."""

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from comparison_figures import BESIDE, PRINTED
from PIL import Image

from vt_flax.cli import summarize
from vt_flax.errors import UserError
from vt_flax.paper.chart import make_figure
from vt_flax.paper.runs import Result

DISTILLED = "VT-ResNet (v4, distilled)"
# Of v4's ablations: the model after 90 epochs.
ABLATION = {"VT-ResNet (v4, 90 epochs)": [(72.0, 1.579, 11.6), (74.8, 3.299, 21.8)]}


def expected_lines():
    """Top-1, GMACs and M parameters by line."""
    lines = {}
    for label, words in (PRINTED | BESIDE).items():
        if words[0] is None:
            continue
        kind = label.partition(" ")[2]
        system = f"SAN {kind}" if kind else label.rpartition("-")[0]
        system = DISTILLED if system == "VT-ResNet" else system
        lines.setdefault(system, []).append(tuple(map(float, words)))
    return lines | ABLATION


def run(folder, **changes):
    values = {
        "model": "vt_resnet18",
        "dataset": "imagenet2012_256",
        "image_size": (224, 224),
        "macs": 1_579_000_000,
        "params": 11_640_000,
        "step": 9,
        "top1": {"raw": 70.0, "ema": 71.5},
        "images_per_second": None,
    }
    return Result(workdir=folder, **{**values, **changes})


def test_published_figures_of_all_systems_are_drawn():
    figure = make_figure()
    lines = expected_lines()
    for axes, place in zip(figure.axes, (1, 2), strict=True):
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert set(drawn) == set(lines)
        for system, points in lines.items():
            wanted = sorted([point[place], point[0]] for point in points)
            np.testing.assert_allclose(drawn[system], wanted, err_msg=system)
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == set(lines)
    assert "multiply-adds" in figure.axes[0].get_xlabel()
    assert "parameters" in figure.axes[1].get_xlabel()
    assert "teacher" in figure.get_suptitle()


def test_own_runs_are_marked_apart(tmp_path):
    small = {
        "dataset": "folder:/data/flowers",
        "image_size": (32, 48),
        "top1": {"raw": 50.0},
    }
    small |= {"macs": 30_000_000, "params": 500_000}
    runs = [run(tmp_path / "large"), run(tmp_path / "small", **small)]
    figure = make_figure(runs)
    large = f"{tmp_path / 'large'}: vt_resnet18"
    small = f"{tmp_path / 'small'}: vt_resnet18, flowers, 32 x 48"
    for axes, key in zip(figure.axes, ([1.579, 0.03], [11.64, 0.5]), strict=True):
        drawn = {line.get_label(): line for line in axes.lines}
        stars = [name for name, line in drawn.items() if line.get_marker() == "*"]
        assert stars == [large, small]
        # The averages, if there are any.
        for name, x, y in zip(stars, key, (71.5, 50.0), strict=True):
            assert drawn[name].get_xydata().tolist() == [pytest.approx([x, y])]
        texts = [text.get_text() for text in axes.texts]
        assert texts[-2:] == ["large", "small"]
        low, high = axes.get_xlim()
        assert low < min(key) and high > 8
    assert "your own runs" in figure.get_suptitle()


def test_labels_hardly_cover_each_other(tmp_path):
    figure = make_figure(
        [run(tmp_path / f"run{i}", top1={"raw": 72.0 + i}) for i in range(4)]
    )
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert len(boxes) == sum(map(len, expected_lines().values())) + 4
        covered = 0.0
        for one, other in itertools.combinations(boxes, 2):
            width = min(one.x1, other.x1) - max(one.x0, other.x0)
            height = min(one.y1, other.y1) - max(one.y0, other.y0)
            covered += max(width, 0) * max(height, 0)
        assert covered < 0.02 * sum(box.width * box.height for box in boxes)
        # Each stays near its mark.
        marks = [
            axes.transData.transform(xy)
            for line in axes.lines
            for xy in line.get_xydata()
        ]
        for box, mark in zip(boxes, marks, strict=True):
            centre = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
            assert abs(centre - mark).max() < 40


def test_the_command_writes_files(tmp_path, capsys):
    for name in ("chart.png", "chart.SVG"):
        file = tmp_path / "made" / name
        summarize.main(["--chart", str(file)])
        assert f"wrote {file}" in capsys.readouterr().err
    with Image.open(tmp_path / "made" / "chart.png") as image:
        assert image.format == "PNG" and image.width > 1000
    assert ElementTree.parse(file).getroot().tag.endswith("svg")


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="must end in .png or .svg"):
        summarize.main(["--chart", str(tmp_path / "chart.pdf")])
    with pytest.raises(UserError, match="--chart .*chart.png: (File exists|Not a d)"):
        summarize.main(["--chart", str(tmp_path / "file" / "chart.png")])
