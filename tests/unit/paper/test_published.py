"""The published figures, typed in a second time, beside our counts."""

import contextlib
import dataclasses
import io
import json

import pytest
from comparison_figures import BESIDE, DESCRIBED
from comparison_figures import PRINTED as SYSTEMS

from vt_flax.cli import summarize, tables
from vt_flax.paper import counts as paper_counts
from vt_flax.paper.macs import Counts
from vt_flax.paper.published import (
    PUBLISHED,
    PUBLISHED_COMPARISON,
    PUBLISHED_SEGMENTATION,
    Figures,
)

# Top-1, MMACs and M parameters.
RESNETS = {
    "ResNet-18": (69.8, 1814, 11.7),
    "ResNet-34": (73.3, 3664, 21.8),
    "ResNet-50": (76.0, 4089, 25.5),
    "ResNet-101": (77.4, 7802, 44.4),
    "plain ResNet-18": (69.9, 1814, 11.7),
    "plain ResNet-34": (73.3, 3664, 21.8),
}
# The same for VT-R18, then for VT-R34.
ABLATIONS = {
    "tokenizer: pooling": ((70.6, 1550, 11.0), (73.5, 3246, 20.6)),
    "tokenizer: clustering": ((71.5, 1580, 11.6), (75.1, 3230, 21.8)),
    "tokenizer: filter + recurrent (the model)": (
        (72.0, 1579, 11.6),
        (74.8, 3299, 21.8),
    ),
    "tokenizer: without recurrent": ((71.4, 1564, 11.1), (74.5, 3369, 20.7)),
    "interaction: none": ((68.8, 1528, 8.5), (73.4, 3222, 17.1)),
    "interaction: graph convolution": ((69.2, 1528, 8.5), (73.6, 3223, 17.1)),
    "interaction: transformer (the model)": ((72.0, 1579, 11.6), (74.8, 3299, 21.8)),
    "tokens: 16": ((72.0, 1579, None), (74.8, 3299, None)),
    "tokens: 32": ((71.7, 1711, None), (75.1, 3514, None)),
    "tokens: 64": ((72.0, 1979, None), (75.0, 3951, None)),
    "without projector": ((70.9, 1497, 9.3), (74.1, 3158, 17.3)),
    "with projector (the model)": ((72.0, 1579, 11.6), (74.8, 3299, 21.8)),
}
TABLE8 = {
    "VT-R18": (76.8, 1569, 11.7),
    "VT-R34": (79.9, 3236, 19.2),
    **dict.fromkeys(("VT-R50 as v1", "VT-R50 as v4"), (80.6, 3412, 21.4)),
    **dict.fromkeys(("VT-R101 as v1", "VT-R101 as v4"), (82.3, 7129, 41.5)),
}
PRINTED = {
    **RESNETS,
    **TABLE8,
    **{
        f"VT-R{depth} {row}": figures[i]
        for row, figures in ABLATIONS.items()
        for i, depth in enumerate((18, 34))
    },
}
# What the architecture must give where the print is rounded or in error (MMACs).
COUNTED = {
    "ResNet-18": 1814.1,
    "ResNet-34": 3663.8,
    "ResNet-50": 4089.2,
    "ResNet-101": 7801.4,
    "plain ResNet-18": 1814.1,
    "plain ResNet-34": 3663.8,
    "VT-R34 tokenizer: without recurrent": 3269,
    "VT-R18": 1569.0,
    "VT-R34": 3236.7,
}
# Rows that the paper does not determine, and what our reading of it counts.
UNDETERMINED = {
    "VT-R18 tokenizer: clustering": 1579.7,
    "VT-R34 tokenizer: clustering": 3299.8,
    "VT-R50 as v1": 3474,
    "VT-R50 as v4": 3679,
    "VT-R101 as v1": 7186,
    "VT-R101 as v4": 7391,
}
# Stage 5 of the plain networks, MMACs and M parameters.
STAGE5 = {18: (411.0, 8.39), 34: (642.3, 13.11), 50: (809.2, 14.97)}
# mIoU, total and FPN GMACs; then ours, by the analysis of the paper.
SEGMENTATION = {
    "COCO-Stuff R-50 FPN": (40.78, "159", "55.1", 159.1, 55.10),
    "COCO-Stuff R-50 VT-FPN": (41.00, "113", "8.5", 112.6, 8.53),
    "COCO-Stuff R-101 FPN": (41.51, "231", "55.1", 231.1, 55.10),
    "COCO-Stuff R-101 VT-FPN": (41.50, "185", "8.5", 184.5, 8.53),
    "LIP R-50 FPN": (47.04, "37.1", "12.8", 37.3, 12.89),
    "LIP R-50 VT-FPN": (47.39, "26.4", "2.0", 26.5, 2.055),
    "LIP R-101 FPN": (47.35, "54.4", "12.8", 54.4, 12.89),
    "LIP R-101 VT-FPN": (47.58, "43.6", "2.0", 43.5, 2.055),
}
# Parameters and multiply-adds at 224 x 224, counted by hand along the systems' papers.
BY_HAND = {
    "SE-ResNet-18": (11_778_592, 1_814_160_384),
    "CBAM-ResNet-50": (28_089_624, 3_864_362_102),
    "AA-ResNet-34": (20_745_072, 3_596_721_568),
    "GloRe-ResNet-50": (30_481_448, 5_316_018_176),
    "LR-Net-26": (14_621_492, 2_367_788_188),
    "Stand-Alone-26": (10_335_144, 2_255_819_776),
    "SAN10 pairwise": (10_531_848, 2_043_668_868),
    "SAN10 patchwise": (11_841_124, 1_791_048_192),
}
SETTINGS = {"COCO-Stuff": ((800, 1216), 54), "LIP": ((473, 473), 20)}
COMPARED = {row.row: row for row in PUBLISHED_COMPARISON}


@pytest.fixture(scope="module")
def records():
    """What `summarize --paper --format json` prints, by table kind and row."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        summarize.main(["--paper", "--format", "json"])
    found = {"paper": {}, "segmentation": {}, "comparison": {}}
    for record in json.loads(text.getvalue()):
        kind = record["table"] if record["table"] in found else "paper"
        found[kind][record["row"]] = record
    return found


def number(figure):
    return None if figure is None else float(figure)


# The data.


def test_figures_of_classification():
    assert len(PUBLISHED) == len(PRINTED)
    for row in PUBLISHED:
        top1, mmacs, mparams = map(number, row.printed)
        assert (top1, round(1e3 * mmacs), mparams) == PRINTED[row.row]
        reference = 1e3 * float(row.gmacs or row.printed.gmacs)
        assert reference == pytest.approx(COUNTED.get(row.row, PRINTED[row.row][1]))
    undetermined = {row.row for row in PUBLISHED if not row.determined}
    assert undetermined == set(UNDETERMINED)
    assert all(row.note for row in PUBLISHED if not row.determined)


def test_figures_of_segmentation():
    assert [row.row for row in PUBLISHED_SEGMENTATION] == list(SEGMENTATION)
    for row in PUBLISHED_SEGMENTATION:
        miou, gmacs, fpn, *_ = SEGMENTATION[row.row]
        assert float(row.printed.accuracy) == miou
        assert (row.printed.gmacs, row.fpn_gmacs) == (gmacs, fpn)
        dataset, depth, kind = row.row.split()
        size, classes = SETTINGS[dataset]
        assert row.image_size == size
        assert row.overrides == {"variant": "msra", "num_classes": classes}
        name = {"FPN": "fpn", "VT-FPN": "vt_fpn"}[kind]
        assert row.model == f"{name}_resnet{depth.removeprefix('R-')}"


def test_figures_of_the_systems_compared_with():
    assert set(COMPARED) == set(SYSTEMS) | set(BESIDE)
    for label, row in COMPARED.items():
        assert row.printed == Figures(*SYSTEMS.get(label, ()))
        assert row.size in row.row and row.size in row.model
        # The figures of SE and CBAM with bottlenecks are of the older stride.
        gated = row.system in ("SE-ResNet", "CBAM-ResNet")
        msra = gated and row.size in ("50", "101")
        assert (row.overrides == {"variant": "msra"}) == msra
        assert row.determined == (label not in ("VT-ResNet-50", "VT-ResNet-101"))
    described = {r.row: float(r.mparams) for r in COMPARED.values() if r.mparams}
    assert described == DESCRIBED
    # AA's own paper prints 8.3 operations, two for a multiply-add.
    assert {row.row: row.own for row in COMPARED.values() if any(row.own)} == {
        **BESIDE,
        "CBAM-ResNet-34": ("74.0", "3.665", "22.0"),
        "SE-ResNet-50": ("76.7", "3.87", None),
        "SE-ResNet-101": ("77.6", "7.60", None),
        "AA-ResNet-50": ("77.7", "4.15", "25.8"),
    }


# Our counts beside them.


@pytest.mark.slow
def test_classification_is_reproduced(records):
    """Within 0.1 % of MACs, and 0.5 % of parameters where they are printed."""
    assert set(records["paper"]) == set(PRINTED)
    for label, record in records["paper"].items():
        reference = COUNTED.get(label, PRINTED[label][1])
        off = 100 * (record["mmacs"] / reference - 1)
        assert record["macs_off"] == pytest.approx(off, abs=2e-3)
        if label in UNDETERMINED:
            assert record["within"] is None and record["note"]
            assert record["mmacs"] == pytest.approx(UNDETERMINED[label], rel=1e-4)
            continue
        assert record["within"] is True
        assert record["mmacs"] == pytest.approx(reference, rel=1e-3), label
        if PRINTED[label][2]:
            assert record["mparams"] == pytest.approx(PRINTED[label][2], rel=5e-3)
        else:
            assert record["params_off"] is None


@pytest.mark.slow
def test_segmentation_is_reproduced(records):
    """The network within 1 %, the pyramid within 1.5 % of what rounds to the print."""
    assert set(records["segmentation"]) == set(SEGMENTATION)
    for label, record in records["segmentation"].items():
        _, gmacs, fpn, our_gmacs, our_fpn = SEGMENTATION[label]
        assert record["mmacs"] / 1e3 == pytest.approx(our_gmacs, abs=0.05)
        assert record["fpn_mmacs"] / 1e3 == pytest.approx(our_fpn, abs=0.005)
        assert record["mmacs"] / 1e3 == pytest.approx(float(gmacs), rel=1e-2)
        upper = 2.05 if fpn == "2.0" else float(fpn)
        assert record["fpn_mmacs"] / 1e3 == pytest.approx(upper, rel=1.5e-2)
        assert record["within"] is True
        # Rounding does not hide the difference from the print.
        off = 100 * (record["fpn_mmacs"] / (1e3 * float(fpn)) - 1)
        assert record["fpn_off"] == pytest.approx(off, abs=0.05)


@pytest.mark.slow
def test_compared_systems_are_reproduced(records):
    """Parameters within 0.5 %, multiply-adds within 2 % or explained."""
    assert set(records["comparison"]) == set(COMPARED)
    for label, record in records["comparison"].items():
        row = COMPARED[label]
        if not row.determined:
            assert record["within"] is None and "not identified" in record["note"]
            continue
        assert record["within"] is True
        _, macs, printed = SYSTEMS.get(label, BESIDE.get(label))
        params = DESCRIBED.get(label, float(printed))
        assert record["mparams"] == pytest.approx(params, rel=5e-3), label
        half = 0.5 * 10.0 ** -len(macs.partition(".")[2])
        near = 1.02 * max(0.02 * float(macs), half)
        # What others count otherwise is not that much.
        near = 0.12 * float(macs) if row.explained else near
        assert record["mmacs"] / 1e3 == pytest.approx(float(macs), abs=near), label


@pytest.mark.slow
def test_compared_systems_have_the_counts_by_hand(records):
    for label, expected in BY_HAND.items():
        row = COMPARED[label]
        counts = paper_counts.counted(row.model, row.image_size, **row.overrides)
        assert (counts.total_params, counts.total_macs) == expected, label


@pytest.mark.slow
def test_stage_5_of_the_plain_networks(records):
    for depth, (mmacs, mparams) in STAGE5.items():
        counts = paper_counts.counted(f"resnet{depth}")
        assert counts.macs["stage5"] / 1e6 == pytest.approx(mmacs, abs=0.051)
        assert counts.params["stage5"] / 1e6 == pytest.approx(mparams, abs=0.01)


@pytest.mark.slow
def test_tables_for_people(records, capsys):
    for kind, make, words in (
        (
            *("paper", paper_counts.classification_table),
            ["30 of 30", "411.0 M in ResNet, fewer by 4.83 (v1), 2.34 (v4)"],
        ),
        (
            *("segmentation", paper_counts.segmentation_table),
            ["8 of 8", "fewer by 6.46", "fewer by 6.28"],
        ),
        (
            *("comparison", paper_counts.comparison_table),
            ["31 of 31", "77.7 %, 4.15 G, 25.8 M", "distillation"],
        ),
    ):
        rows = list(records[kind].values())
        table = make(rows)
        tables.print_rows(table.rows, "table", table.title, table.notes)
        text = capsys.readouterr().out
        assert all(word in text for word in words), text
        for row in rows:
            (line,) = (x for x in text.splitlines() if f"  {row['row']}  " in x)
            printed = row["printed_gmacs"] or "-"
            assert printed in line.split()
            assert ("ok" if row["within"] else "not determined") in line


# Verdicts.


def made(gmacs, mparams, fpn=0.0):
    macs = {"stem": round((gmacs - fpn) * 1e9), "fpn": round(fpn * 1e9)}
    return Counts(macs, {"stem": round(mparams * 1e6)})


def within(row, *figures):
    return paper_counts.compare(row, made(*figures))["within"]


def test_verdicts_on_a_compared_system():
    row = COMPARED["SE-ResNet-50"]
    assert within(row, 3.93, 28.09 * 1.004) and not within(row, 3.95, 28.09)
    assert not within(row, 3.86, 28.09 * 1.006)
    record = paper_counts.compare(row, made(4.0, 28.0))
    assert record["macs_off"] == pytest.approx(100 * (4 / 3.86 - 1), abs=0.01)
    assert record["params_off"] == pytest.approx(100 * (28 / 28.09 - 1), abs=0.01)
    # An explanation excuses multiply-adds, and no parameters.
    row = dataclasses.replace(row, explained="the stem is left out")
    record = paper_counts.compare(row, made(4.0, 28.0))
    assert record["within"] is True and "the stem is left out" in record["note"]
    assert not within(row, 4.0, 29.0)
    # 1.9 may stand for 1.95, which is 2.6 % more; the next 2 % are ours.
    row = dataclasses.replace(COMPARED["SAN10 patchwise"], explained="")
    assert within(row, 1.98, 11.84) and not within(row, 2.0, 11.84)


def test_verdicts_on_the_papers_rows():
    rows = {row.row: row for row in (*PUBLISHED, *PUBLISHED_SEGMENTATION)}
    row = rows["VT-R34 tokenizer: without recurrent"]
    assert within(row, 3.2720, 20.7) and not within(row, 3.2725, 20.7)
    assert not within(row, 3.369, 20.7) and not within(row, 3.269, 20.9)
    row = rows["LIP R-50 VT-FPN"]
    assert within(row, 26.6, 25, 2.08) and not within(row, 26.7, 25, 2.05)
    assert not within(row, 26.4, 25, 2.09)
    assert within(rows["VT-R50 as v4"], 9.9, 99.0) is None


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
def test_the_figure_that_ours_is_compared_with(ours, printed, reference):
    found = paper_counts.reference_figure(ours, printed, 0.015)
    assert found == pytest.approx(reference)
