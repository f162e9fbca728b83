"""The printed counts of segmentation, typed in a second time, beside ours."""

import pytest

from vt_flax.cli import tables
from vt_flax.models import create_model
from vt_flax.paper import counts as paper_counts
from vt_flax.paper.counts import segmentation_table
from vt_flax.paper.macs import count
from vt_flax.paper.published_segmentation import PUBLISHED_SEGMENTATION

pytestmark = pytest.mark.slow

# Total and FPN GMACs and mIoU, as printed.
PRINTED = {
    "COCO-Stuff R-50 FPN": ("159", "55.1", 40.78),
    "COCO-Stuff R-50 VT-FPN": ("113", "8.5", 41.00),
    "COCO-Stuff R-101 FPN": ("231", "55.1", 41.51),
    "COCO-Stuff R-101 VT-FPN": ("185", "8.5", 41.50),
    "LIP R-50 FPN": ("37.1", "12.8", 47.04),
    "LIP R-50 VT-FPN": ("26.4", "2.0", 47.39),
    "LIP R-101 FPN": ("54.4", "12.8", 47.35),
    "LIP R-101 VT-FPN": ("43.6", "2.0", 47.58),
}
SETTINGS = {"COCO-Stuff": ((800, 1216), 54), "LIP": ((473, 473), 20)}
ROUNDED = {"LIP R-50 VT-FPN", "LIP R-101 VT-FPN"}


@pytest.fixture(scope="module")
def rows():
    """The records that `summarize --paper` prints, by row."""
    return {record["row"]: record for record in paper_counts.segmentation_rows()}


def test_the_data_are_the_printed_figures():
    assert [row.row for row in PUBLISHED_SEGMENTATION] == list(PRINTED)
    for row in PUBLISHED_SEGMENTATION:
        assert (row.gmacs, row.fpn_gmacs, row.miou) == PRINTED[row.row]
        dataset, depth, kind = row.row.split()
        size, classes = SETTINGS[dataset]
        assert row.image_size == size
        assert row.overrides == {"variant": "msra", "num_classes": classes}
        name = {"FPN": "fpn", "VT-FPN": "vt_fpn"}[kind]
        assert row.model == f"{name}_resnet{depth.removeprefix('R-')}"


@pytest.mark.parametrize("label", PRINTED)
def test_rows_are_reproduced(rows, label):
    """The network within 1 %, the pyramid within 1.5 % of the print.

    LIP prints one digit after the point for VT-FPN's pyramid: 2.0 is anything from 1.95
    to 2.05, which is more than the tolerance each way.
    """
    record, (total, fpn, _) = rows[label], PRINTED[label]
    assert record["printed_mmacs"] == pytest.approx(1e3 * float(total))
    assert record["printed_fpn_mmacs"] == pytest.approx(1e3 * float(fpn))
    assert record["mmacs"] == pytest.approx(1e3 * float(total), rel=1e-2)
    expected = 2050 if label in ROUNDED else 1e3 * float(fpn)
    assert record["fpn_mmacs"] == pytest.approx(expected, rel=1.5e-2)
    assert record["reference_fpn_mmacs"] == pytest.approx(expected)
    assert record["within"] is True
    # The offset hides nothing: it is from the print itself.
    off = 100 * (record["fpn_mmacs"] / (1e3 * float(fpn)) - 1)
    assert record["fpn_off"] == pytest.approx(off, abs=2e-3)
    off = 100 * (record["mmacs"] / (1e3 * float(total)) - 1)
    assert record["macs_off"] == pytest.approx(off, abs=2e-3)


def test_the_figures_of_the_analysis_of_the_paper(rows):
    for label, gmacs in {
        "COCO-Stuff R-50 FPN": 159.1,
        "COCO-Stuff R-101 FPN": 231.1,
        "LIP R-50 FPN": 37.3,
        "LIP R-101 FPN": 54.4,
    }.items():
        assert rows[label]["mmacs"] / 1e3 == pytest.approx(gmacs, abs=0.05)
    for label, gmacs in {
        "COCO-Stuff R-50 FPN": 55.10,
        "COCO-Stuff R-50 VT-FPN": 8.53,
        "LIP R-50 FPN": 12.89,
        "LIP R-50 VT-FPN": 2.055,
    }.items():
        assert rows[label]["fpn_mmacs"] / 1e3 == pytest.approx(gmacs, abs=0.005)
    ratio = (
        rows["COCO-Stuff R-50 FPN"]["fpn_mmacs"]
        / rows["COCO-Stuff R-50 VT-FPN"]["fpn_mmacs"]
    )
    assert f"{ratio:.1f}" == "6.5"


@pytest.mark.parametrize(
    "ours,printed,reference",
    [
        # Half a unit is 0.09 % and 0.6 % of these.
        (55.3, "55.1", 55.1),
        (8.7, "8.5", 8.5),
        # Here it is 2.5 %.
        (2.06, "2.0", 2.05),
        (2.01, "2.0", 2.01),
        (1.5, "2.0", 1.95),
        (30.0, "29", 29.5),
    ],
)
def test_what_a_figure_is_compared_with(ours, printed, reference):
    assert paper_counts.reference_figure(ours, printed, 0.015) == pytest.approx(
        reference
    )


def test_a_row_that_is_off_is_told():
    (row,) = [r for r in PUBLISHED_SEGMENTATION if r.row == "LIP R-50 VT-FPN"]
    for overrides in ({}, {"head_channels": 64}, {"tokens": 16}):
        model = create_model(row.model, **row.overrides, **overrides)
        record = paper_counts.compare_segmentation(row, count(model, row.image_size))
        assert record["within"] is (not overrides)


def test_the_alternatives_do_not_round_to_the_print():
    """Of the transformers, v1's gives 8.5 and v4's 8.6."""
    for overrides, printed in (
        ({}, "8.5"),
        ({"feed_forward": "mlp", "transformer_groups": 4}, "8.6"),
    ):
        model = create_model("vt_fpn_resnet50", variant="msra", **overrides)
        assert f"{count(model, (800, 1216)).macs['fpn'] / 1e9:.1f}" == printed


def test_the_table_for_people(rows, capsys):
    table = segmentation_table(list(rows.values()))
    tables.print_rows(table.rows, "table", table.title, table.notes)
    text = capsys.readouterr().out
    lines = text.splitlines()
    for label, (total, fpn, miou) in PRINTED.items():
        (line,) = [line for line in lines if label in line]
        words = line.split()
        assert [total, fpn] == [words[i] for i in (5, 8)]
        assert f"{miou:.2f}" in words and "ok" in words
    assert "8 of 8 rows" in text
    assert any("800x1216" in line and "fewer by 6.46" in line for line in lines)
    assert any("473x473" in line and "fewer by 6.28" in line for line in lines)


# ---------------------------------------------------------------------- hand's count


def halved(sides):
    return tuple(-(-side // 2) for side in sides)


def by_hand(kind, sides, width, classes):
    """Multiply-adds and parameters of a pyramid and its head on ResNet-18.

    256 and 128 channels; 8 tokens of 1024 channels a level; one transformer of 8 groups
    with a linear feed-forward map. After each convolution, and after each token map, a
    scale and a bias for every channel.
    """
    pixels = []
    sides = halved(halved(sides))
    for _ in range(4):
        pixels.append(sides[0] * sides[1])
        sides = halved(sides)
    c = [width * 2**i for i in range(4)]
    macs = sum(p * channels * 256 for p, channels in zip(pixels, c, strict=True))
    params = sum(channels * 256 + 2 * 256 for channels in c)
    for p in pixels:
        if kind == "fpn":
            macs += p * 9 * 256 * 256
            params += 9 * 256 * 256 + 2 * 256
            continue
        # Filters, coefficients times pixels; the token map.
        macs += p * 256 * 8 + p * 8 * 256 + 8 * 256 * 1024
        params += 256 * 8 + 256 * 1024 + 2 * 1024
        # Grouped query, logits, weights times values; key and value maps.
        macs += p * 256 * 16 + p * 8 * 256 + p * 8 * 256 + 2 * (8 * 1024 * 256)
        params += 256 * 16 + 2 * (1024 * 256) + 2 * 256
    if kind == "vt_fpn":
        grouped = 1024 * (512 + 512 + 1024) // 8
        macs += 32 * grouped + 32 * 32 * 512 + 32 * 32 * 1024 + 32 * 1024 * 1024
        params += grouped + 1024 * 1024 + 2 * 1024
    head_macs = pixels[0] * 128 * classes
    head_params = 128 * classes + classes
    # A level's convolutions are at its own size and at those on the way to the finest.
    for places in ([0], [1], [2, 1], [3, 2, 1]):
        for i, place in enumerate(places):
            inside = 128 if i else 256
            head_macs += pixels[place] * 9 * inside * 128
            head_params += 9 * inside * 128 + 2 * 128
    return {"fpn": (macs, params), "head": (head_macs, head_params)}


@pytest.mark.parametrize("sides", [(64, 96), (75, 141), (32, 32)])
@pytest.mark.parametrize("kind", ["fpn", "vt_fpn"])
def test_counts_equal_those_by_hand(kind, sides):
    """Interpolations, of which odd sizes have more, are not counted."""
    model = create_model(f"{kind}_resnet18", width=16, num_classes=7)
    counts = count(model, sides)
    for part, (macs, params) in by_hand(kind, sides, 16, 7).items():
        assert counts.macs[part] == macs
        assert counts.params[part] == params
    plain = count(create_model("resnet18", width=16), sides)
    order = ["stem", "stage2", "stage3", "stage4", "stage5"]
    assert list(counts.macs) == [*order, "fpn", "head"]
    for part in order:
        assert counts.macs[part] == plain.macs[part]
        assert counts.params[part] == plain.params[part]
