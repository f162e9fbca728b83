"""What is read from the workdirs of runs, and the ablations beside the paper's."""

import importlib.util
import json
import pathlib

import pytest
from ml_collections import ConfigDict

from vt_flax.cli import summarize
from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.paper.macs import count
from vt_flax.paper.published import PUBLISHED
from vt_flax.training.config import resolve
from vt_flax.training.workdir import RunRecord

SMALL = {"name": "resnet18", "stem": "small", "width": 8}
ABLATIONS = pathlib.Path(__file__).parents[3] / "configs" / "ablations.py"
# Top-1, GMACs and M params as printed for VT-R18 and VT-R34.
PRINTED = {
    ("pooling", 18): ("70.6", "1.550", "11.0"),
    ("v1", 18): (None, None, None),
    ("tokens32", 34): ("75.1", "3.514", None),
}


def made(workdir, records=(), model=SMALL, **data):
    """Makes the workdir of a run that has measured some records."""
    workdir.mkdir(parents=True)
    values = {"model": model, "data": {"name": "digits", "image_size": 16, **data}}
    names = [str(i) for i in range(10)]
    RunRecord(resolve(ConfigDict(values)).to_dict(), names).write(workdir)
    lines = [json.dumps(record) + "\n" for record in records]
    (workdir / "metrics.jsonl").write_text("".join(lines))
    return workdir


def record(kind, step, **values):
    return {"kind": kind, "step": step, **values}


RECORDS = [
    record("train", 2, loss=2.0),
    record("train", 4, loss=1.9, images_per_second=50.0),
    record("eval", 4, raw_top1=61.234, ema_top1=60.0, raw_top5=99.0),
    record("train", 6, loss=1.9, images_per_second=70.0),
    record("train", 8, loss=1.8, images_per_second=10.0),
    record("eval", 8, raw_top1=58.765, ema_top1=64.321, raw_top5=99.0),
]


def printed(capsys, *words):
    summarize.main([*words, "--format", "json"])
    return json.loads(capsys.readouterr().out)


def test_results_are_of_the_newest_evaluation(tmp_path, capsys):
    """Counted at their own size and classes; one has not been evaluated yet."""
    one = made(tmp_path / "one", RECORDS)
    new = made(tmp_path / "new", RECORDS[:1], image_size=8)
    first, second = printed(capsys, "--runs", str(one), str(new))
    counts = count(create_model(**SMALL, num_classes=10), (16, 16))
    assert first == {
        "run": str(one),
        "model": "resnet18",
        "dataset": "digits",
        "size": "16x16",
        "step": 8,
        "raw_top1": 58.77,
        "ema_top1": 64.32,
        "mmacs": round(counts.total_macs / 1e6, 2),
        "mparams": round(counts.total_params / 1e6, 3),
        "images_per_second": 50.0,
    }
    assert second["step"] is second["raw_top1"] is second["images_per_second"] is None
    assert second["mmacs"] < first["mmacs"]
    summarize.main(["--runs", str(one), str(new)])
    assert "64.32" in capsys.readouterr().out


def test_what_is_no_result_is_one_line(tmp_path):
    new = made(tmp_path / "new", RECORDS[:2])
    masks = made(tmp_path / "masks", model={"name": "fpn_resnet18"})
    png = str(tmp_path / "chart.png")
    for words, message in (
        (["--chart", png, "--runs", new], f"{new} has no evaluation on record yet"),
        (["--runs", masks], f"{masks}: fpn_resnet18 segments, and has no top-1"),
        (["--runs", tmp_path / "none"], r"none holds no run \(config.json is missing"),
        (["--runs", "gs://bucket/run"], "buckets are not supported"),
        (["--runs", new, "--paper"], "--paper and --runs: one at a time"),
        (["--ablation", tmp_path], "no run is there; name the folder"),
    ):
        with pytest.raises(UserError, match=message) as error:
            summarize.main([str(word) for word in words])
        assert "\n" not in str(error.value)
    assert not pathlib.Path(png).exists()


# Ablations.


def test_the_rows_are_those_of_the_configurations():
    spec = importlib.util.spec_from_file_location("ablations", ABLATIONS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = [row.ablation for row in PUBLISHED if row.ablation and "18" in row.model]
    # Of these the paper prints no number.
    assert set(module.ROWS) - set(known) == {"v1", "no_position"}
    assert len(known) == len(set(known)) == len(module.ROWS) - 2


def test_the_paper_is_beside_each_ablation(tmp_path, capsys):
    for name, depth in PRINTED:
        made(tmp_path / f"{name}-{depth}", RECORDS)
    made(tmp_path / "other", RECORDS)
    rows = printed(capsys, "--ablation", str(tmp_path))
    assert [(row["row"], row["depth"]) for row in rows] == list(PRINTED)
    for row in rows:
        keys = ("printed_top1", "printed_gmacs", "printed_mparams")
        assert tuple(row[key] for key in keys) == PRINTED[row["row"], row["depth"]]
        assert row["ema_top1"] == 64.32
    summarize.main(["--ablation", str(tmp_path)])
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if "tokens32, 34" in line]
    assert line.split()[2:6] == ["75.1", "58.77", "64.32", "8"]
    assert "of digits at 16x16, by the newest evaluation" in text
