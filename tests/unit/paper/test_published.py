"""The paper's printed counts, typed in a second time, beside ours."""

import contextlib
import io
import json

import pytest

from vt_flax.cli import summarize
from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.paper.macs import count
from vt_flax.paper.published import PUBLISHED

pytestmark = pytest.mark.slow

RESNETS = {
    "ResNet-18": (69.8, 1814, 11.7),
    "ResNet-34": (73.3, 3664, 21.8),
    "ResNet-50": (76.0, 4089, 25.5),
    "ResNet-101": (77.4, 7802, 44.4),
}
# Top-1, MMACs, M parameters for VT-R18, then for VT-R34.
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
    18: (76.8, 1569, 11.7),
    34: (79.9, 3236, 19.2),
    50: (80.6, 3412, 21.4),
    101: (82.3, 7129, 41.5),
}
PRINTED = {
    **RESNETS,
    "plain ResNet-18": (69.9, 1814, 11.7),
    "plain ResNet-34": (73.3, 3664, 21.8),
    **{
        f"VT-R{depth} {row}": figures[i]
        for row, figures in ABLATIONS.items()
        for i, depth in enumerate((18, 34))
    },
    "VT-R18": TABLE8[18],
    "VT-R34": TABLE8[34],
    **{
        f"VT-R{depth} as {preset}": TABLE8[depth]
        for depth in (50, 101)
        for preset in ("v1", "v4")
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
UNDETERMINED = {
    *(f"VT-R{depth} as {preset}" for depth in (50, 101) for preset in ("v1", "v4")),
    *(f"VT-R{depth} tokenizer: clustering" for depth in (18, 34)),
}
# MMACs and M parameters of the parts, from the paper's section on VT-ResNet.
PARTS = {
    18: ((1402.5, 2.783), (411.0, 8.39)),
    34: ((3021.0, 8.170), (642.3, 13.11)),
    50: ((3277.9, 8.543), (809.2, 14.97)),
    101: ((6990.1, 27.535), (809.2, 14.97)),
}


@pytest.fixture(scope="module")
def records():
    """What `summarize --paper --format json` prints, but for the comparison.

    That is in test_comparison.py.
    """
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        patch.setattr(summarize, "comparison_rows", list)
        summarize.main(["--paper", "--format", "json"])
    return json.loads(text.getvalue())


@pytest.fixture(scope="module")
def rows(records):
    """The records of classification, by row."""
    assert len({record["row"] for record in records}) == len(records)
    return {
        record["row"]: record for record in records if record["table"] != "segmentation"
    }


@pytest.mark.parametrize("label", PRINTED)
def test_the_data_are_the_printed_figures(label):
    (row,) = [row for row in PUBLISHED if row.row == label]
    top1, mmacs, mparams = PRINTED[label]
    assert row.top1 == top1
    assert row.mmacs == mmacs
    # The table of token numbers prints no parameters.
    assert row.mparams == mparams


def test_no_row_is_missing_and_none_is_new():
    assert {row.row for row in PUBLISHED} == set(PRINTED)
    assert len(PUBLISHED) == len(PRINTED)


def test_the_rows_that_the_paper_does_not_determine():
    assert {row.row for row in PUBLISHED if not row.determined} == UNDETERMINED
    assert all(row.note for row in PUBLISHED if not row.determined)
    for depth in (50, 101):
        for preset in ("v1", "v4"):
            (row,) = [r for r in PUBLISHED if r.row == f"VT-R{depth} as {preset}"]
            assert row.model == f"vt_resnet{depth}" and row.table == "table 8"
            assert row.overrides == {"preset": preset}


def test_references_differ_from_the_print_where_it_is_rounded_or_wrong():
    for row in PUBLISHED:
        assert row.reference_mmacs == COUNTED.get(row.row, PRINTED[row.row][1])


def test_the_records_have_the_promised_keys(rows):
    keys = {"table", "row", "printed_mmacs", "printed_mparams", "mmacs", "mparams"}
    assert set(rows) == set(PRINTED)
    for label, record in rows.items():
        assert keys <= set(record)
        assert record["table"] in ("resnet", "ablation", "table 8")
        assert record["printed_mmacs"] == PRINTED[label][1]
        assert record["printed_mparams"] == PRINTED[label][2]
        for key in ("mmacs", "mparams"):
            assert isinstance(record[key], float)


def test_the_rows_of_segmentation_follow_with_the_same_keys(records, rows):
    rest = records[len(rows) :]
    assert {record["table"] for record in rest} == {"segmentation"}
    assert len(rest) == 8
    for record in rest:
        assert set(records[0]) <= set(record)


@pytest.mark.parametrize("label", RESNETS)
def test_resnets_are_reproduced(rows, label):
    record = rows[label]
    assert record["mmacs"] == pytest.approx(PRINTED[label][1], rel=2e-4)
    assert record["mmacs"] == pytest.approx(COUNTED[label], abs=0.06)
    assert abs(record["mparams"] - PRINTED[label][2]) < 0.06 + 0.005 * 25


@pytest.mark.parametrize("label", sorted(set(PRINTED) - UNDETERMINED))
def test_determined_rows_are_reproduced(rows, label):
    """Within 0.1 % of MACs, and 0.5 % of parameters where they are printed."""
    record = rows[label]
    expected = COUNTED.get(label, PRINTED[label][1])
    assert record["mmacs"] == pytest.approx(expected, rel=1e-3)
    if PRINTED[label][2] is not None:
        assert record["mparams"] == pytest.approx(PRINTED[label][2], rel=5e-3)
    assert record["determined"] is True and record["within"] is True


@pytest.mark.parametrize(
    "label,mmacs,mparams",
    [
        ("VT-R18 tokenizer: filter + recurrent (the model)", 1579.0, "11.64"),
        ("VT-R34 tokenizer: filter + recurrent (the model)", 3299.0, "21.85"),
        ("VT-R18", 1569.0, "11.64"),
        ("VT-R34", 3236.7, "19.23"),
        ("VT-R50 as v4", 3679, "27.3"),
        ("VT-R50 as v1", 3474, "23.6"),
        ("VT-R101 as v4", 7391, "46.3"),
        ("VT-R101 as v1", 7186, "42.6"),
    ],
)
def test_counts_of_the_blocks_to_the_digit(rows, label, mmacs, mparams):
    """The analysis counts the modules without normalization."""
    (row,) = [row for row in PUBLISHED if row.row == label]
    model = create_model(row.model, norm_placement="none", **row.overrides)
    digits = len(mparams.partition(".")[2])
    assert f"{count(model).total_params / 1e6:.{digits}f}" == mparams
    assert rows[label]["mmacs"] == pytest.approx(mmacs, rel=5e-5)


def test_undetermined_rows_are_given_without_a_verdict(rows):
    for label in UNDETERMINED:
        assert rows[label]["determined"] is False
        assert rows[label]["within"] is None


def test_offsets_are_relative_to_the_reference(rows):
    for label, record in rows.items():
        expected = COUNTED.get(label, PRINTED[label][1])
        off = 100 * (record["mmacs"] / expected - 1)
        assert record["macs_off"] == pytest.approx(off, abs=2e-3)
        if PRINTED[label][2] is None:
            assert record["params_off"] is None
            continue
        off = 100 * (record["mparams"] / record["printed_mparams"] - 1)
        assert record["params_off"] == pytest.approx(off, abs=0.02)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_parts_of_the_plain_networks(depth):
    counts = count(create_model(f"resnet{depth}"))
    before, last = PARTS[depth]
    early = ["stem", "stage2", "stage3", "stage4"]
    mmacs = sum(counts.macs[part] for part in early) / 1e6
    mparams = sum(counts.params[part] for part in early) / 1e6
    assert mmacs == pytest.approx(before[0], abs=0.051)
    assert mparams == pytest.approx(before[1], abs=0.00051)
    assert counts.macs["stage5"] / 1e6 == pytest.approx(last[0], abs=0.051)
    assert counts.params["stage5"] / 1e6 == pytest.approx(last[1], abs=0.01)


# The command beside the paper's table.


def printed(capsys, *argv):
    summarize.main(argv)
    return capsys.readouterr().out


def test_a_model_s_parts_as_json(capsys):
    text = printed(capsys, "resnet18", "--image_size", "32", "--format", "json")
    records = json.loads(text)
    assert [record["part"] for record in records] == [
        *("stem", "stage2", "stage3", "stage4", "stage5", "head", "total")
    ]
    for key in ("macs", "params"):
        *parts, total = (record[key] for record in records)
        assert sum(parts) == total
    # 7 x 7 of stride 2 on 32 x 32 pixels, and its normalization.
    assert records[0]["macs"] == 16 * 16 * 64 * 3 * 49
    assert records[0]["params"] == 64 * 3 * 49 + 2 * 64
    assert records[0]["mmacs"] == round(records[0]["macs"] / 1e6, 2)


def test_height_and_width(capsys):
    text = printed(capsys, "fpn_resnet18", "--image_size", "32x64", "--format", "json")
    parts = {record["part"]: record for record in json.loads(text)}
    assert parts["stem"]["macs"] == 16 * 32 * 64 * 3 * 49
    assert {"fpn", "head"} <= set(parts)
    assert "32 x 64" in printed(capsys, "resnet18", "--image_size", "32x64")


def test_options_change_the_model(capsys):
    text = printed(
        capsys,
        *("resnet18", "--image_size", "32", "--format", "json"),
        *("--set", "width=8", "--set", "num_classes=10", "--set", "stem=small"),
    )
    stem, *_, head, _ = json.loads(text)
    assert stem["macs"] == 32 * 32 * 8 * 3 * 9
    assert head["params"] == 64 * 10 + 10


def test_a_table_for_people(capsys):
    text = printed(capsys, "resnet18", "--image_size", "32")
    head = f"{512 * 1000 + 1000:,}"
    assert any("head" in line and head in line for line in text.splitlines())


@pytest.mark.parametrize(
    "argv,message",
    [
        (["resnt18"], "no model matches 'resnt18'.*did you mean resnet18"),
        (["resnet18", "--set", "widht=8"], "no option 'widht'.*did you mean width"),
        (["resnet18", "--set", "width"], "'width': write"),
        (["resnet18", "--set", "dtype=float31"], "'float31' is not known"),
        (["resnet18", "--image_size", "0"], "--image_size 0: must be at least 1"),
        (["resnet18", "--image_size", "9" * 20], "9: must be at most 65536"),
        (["resnet18", "--image_size", "big"], "--image_size.*'big'.*HEIGHTxWIDTH"),
        (["resnet18", "--image_size", "64x"], "--image_size.*'64x'.*HEIGHTxWIDTH"),
        (["resnet18", "--image_size", "8x8x8"], "'8x8x8': write a side"),
        (["resnet18", "--image_size", "64x0"], "--image_size 64x0: must be at least 1"),
        (["--paper", "--image_size", "224x225"], "--paper takes no GLOB"),
        (["--paper", "resnet18"], "--paper takes no GLOB"),
        (["--paper", "--set", "width=8"], "--paper takes no GLOB"),
        (["--papr"], "--papr"),
        (["resnet18", "--set", "width='a'"], "width"),
        (["resnet18", "--set", "stage_sizes=3"], "stage_sizes"),
        (["resnet18", "--set", "stage_sizes=[1,1]"], "stage_sizes"),
        (["resnet18", "--set", "stage_sizes=['a',1,1,1]"], "must be a list of int"),
    ],
)
def test_bad_arguments(argv, message):
    with pytest.raises(UserError, match=message):
        summarize.main(argv)
