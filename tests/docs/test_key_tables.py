"""The tables of keys, options, statuses and figures are those of the code."""

import re

import config_table
import doc_pages
import pytest
from doc_pages import ROOT

from vt_flax.cli import prepare_data
from vt_flax.errors import UserError
from vt_flax.models import list_models, model_options
from vt_flax.paper.published import PUBLISHED
from vt_flax.paper.published_segmentation import PUBLISHED_SEGMENTATION
from vt_flax.parallel.cluster import LOST
from vt_flax.training.config import default_config
from vt_flax.training.progress import Diverged
from vt_flax.training.requests import Stopped


def table_of(page, *columns):
    """Returns the tables of a page that begin with some columns, as one."""
    tables = doc_pages.tables(ROOT / page)
    found = [t for t in tables if tuple(t[0])[: len(columns)] == columns]
    assert found
    return [row for table in found for row in table]


def test_the_table_of_keys_is_the_configuration():
    page = config_table.PAGE.read_text()
    assert page == config_table.written(page), f"run python {config_table.__file__}"


def test_every_key_is_told_with_its_default_and_what_it_is():
    def leaves(section, prefix=""):
        for key, value in section.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"`{prefix}{key}`", value

    rows = {r["key"]: r for r in table_of("docs/configuration.md", "key", "default")}
    keys = dict(leaves(default_config().to_dict()))
    assert {key for key, row in rows.items() if row["default"]} == {*keys}
    for key, value in keys.items():
        assert rows[key]["default"] == f"`{value!r}`".replace("'", '"')
        assert len(rows[key]["what"]) > 5, key


def test_every_option_of_a_model_is_told_with_its_default():
    defaults: dict[str, set[str]] = {}
    for name in list_models():
        for option, value in model_options(name).items():
            told = f"`{value!r}`".replace("'", '"')
            defaults.setdefault(option, set()).add(told)
    rows = table_of("docs/models.md", "option", "default")
    names = [re.match(r"`(\w+)`", row["option"])[1] for row in rows]
    assert {*names} == {*defaults}
    for option, row in zip(names, rows, strict=True):
        by_name = option in ("num_classes", "stage_sizes")
        assert by_name or row["default"] in defaults[option], option


def test_options_of_tokens_are_those_of_the_models():
    rows = table_of("docs/models.md", "option", "default", "what")
    marked = {row["option"].split("`")[1] for row in rows if "*" in row["option"]}
    pyramid, plain, tokens, resnet = (
        {*model_options(name)}
        for name in ("vt_fpn_resnet18", "fpn_resnet18", "vt_resnet18", "resnet18")
    )
    assert pyramid - plain == marked
    assert marked <= tokens - resnet


@pytest.mark.parametrize("page", ["docs/troubleshooting.md"])
def test_statuses(page):
    told = {
        int(row["status of `train`"]) for row in table_of(page, "status of `train`")
    }
    assert told == {LOST, *(kind.status for kind in (UserError, Diverged, Stopped))}


def test_measured_figures_are_those_of_the_benchmarks():
    measured = (ROOT / "BENCHMARKS.md").read_text()
    rows = table_of("README.md", "data", "network", "result")
    figures = re.findall(
        r"\d+\.\d+", " ".join(f"{r}" for row in rows for r in row.values())
    )
    assert len(figures) > 5
    assert not [f for f in figures if not re.search(rf"(?<![\d.]){f}(?!\d)", measured)]


def test_the_room_for_imagenet_is_what_is_asked_for():
    """By the help and by the page; the smaller copy takes alike in both."""
    # Archives round each image up to 512 bytes; array_record adds at most 2 %.
    asked = (147_897_477_120 + 6_744_924_160) * 1.02
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "data.md").read_text())
    (built,) = re.findall(r"about (\d+) GB beside the archives", page)
    (copied,) = re.findall(r"short side of at most 256, about (\d+) GB", page)
    assert int(built) == round(asked / 1e9)
    text = re.sub(r"\s+", " ", prepare_data.__doc__)
    assert f"about {built} GB beside its archives" in text
    assert f"the copy at 256 about {copied} GB more" in text


def test_printed_figures_are_the_papers():
    rows = {row.row: row for row in PUBLISHED}
    for line in table_of("README.md", "depth", "ResNet"):
        plain = rows[f"ResNet-{line['depth']}"]
        ours = [
            row
            for row in PUBLISHED
            if row.table == "table 8"
            and row.row.startswith(f"VT-R{line['depth']}")
            and row.row[4 + len(line["depth"]) :][:1] in ("", " ")
        ]
        _, top1, macs, vt_top1, vt_macs = map(float, line.values())
        assert (top1, macs) == (plain.top1, plain.mmacs / 1e3)
        assert {(row.top1, row.mmacs / 1e3) for row in ours} == {(vt_top1, vt_macs)}
    segmentation = {row.row: row for row in PUBLISHED_SEGMENTATION}
    for line in table_of("docs/segmentation.md", "backbone", "FPN"):
        name, *printed = line.values()
        found = []
        for kind in ("FPN", "VT-FPN"):
            row = segmentation[f"COCO-Stuff R-{name.removeprefix('ResNet-')} {kind}"]
            found += [f"{row.miou:.2f}", row.gmacs]
        assert printed == found
