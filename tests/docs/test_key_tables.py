"""The tables of keys, options, statuses and figures are those of the code."""

import re

import config_table
import doc_pages
from doc_pages import ROOT

from vt_flax.errors import UserError
from vt_flax.models import list_models, model_options
from vt_flax.paper.published import PUBLISHED, PUBLISHED_SEGMENTATION
from vt_flax.parallel.cluster import LOST
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


def test_every_option_of_a_model_has_its_default():
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


def test_exit_statuses():
    column = "status of `train`"
    statuses = {int(r[column]) for r in table_of("docs/troubleshooting.md", column)}
    assert statuses == {LOST, UserError.status, Diverged.status, Stopped.status}


def test_measured_figures_are_those_of_the_benchmarks():
    measured = (ROOT / "BENCHMARKS.md").read_text()
    rows = table_of("README.md", "data", "network", "result")
    figures = re.findall(
        r"\d+\.\d+", " ".join(f"{r}" for row in rows for r in row.values())
    )
    assert len(figures) > 5
    assert not [f for f in figures if not re.search(rf"(?<![\d.]){f}(?!\d)", measured)]


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
        assert [top1, macs] == [*map(float, plain.printed[:2])]
        for row in ours:
            assert [vt_top1, vt_macs] == [*map(float, row.printed[:2])]
    segmentation = {row.row: row for row in PUBLISHED_SEGMENTATION}
    for line in table_of("docs/segmentation.md", "backbone", "FPN"):
        name, *printed = line.values()
        found = []
        for kind in ("FPN", "VT-FPN"):
            row = segmentation[f"COCO-Stuff R-{name.removeprefix('ResNet-')} {kind}"]
            found += row.printed[:2]
        assert printed == found
