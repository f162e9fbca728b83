"""The command prepare_data: refusals, the last lines, and training on the result."""

import json
import pathlib
import re
import shlex
import sys

import pytest
import requests
from pair_trees import assert_same, make_lip, stored
from test_bad_input import refusal

from vt_flax.cli import prepare_data, startup, train

pytestmark = pytest.mark.slow

IMAGENET = str(pathlib.Path(__file__).parents[2] / "configs" / "imagenet.py")


def run(main, arguments, monkeypatch, capsys) -> str:
    """Runs a command that succeeds and returns its standard output."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    capsys.readouterr()
    startup.run(main)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "line, message",
    [
        ("imagenet2O12 --data_dir D", "did you mean imagenet2012"),
        ("folder:photos --data_dir D", "class folders need no preparing"),
        ("imagenet2012:1.0.0 --data_dir D", "1.0.0"),
        ("imagenet2012", "--data_dir"),
        ("cifar10 mnist --data_dir D", "write NAME, or convert NAME"),
        ("convert --data_dir D", "write NAME, or convert NAME"),
        ("convert cifar10 --data_dir D", "'cifar10' is not prepared in"),
        ("convert cifar10 --data_dir D --resize 9", "convert takes no"),
        ("cifar10 --data_dir D --out_dir E", "--out_dir is for convert"),
        ("cifar10 --data_dir gs://bucket/D", "buckets are not supported yet"),
        ("convert cifar10 --data_dir D --out_dir gs://b", "--out_dir gs://b"),
        ("digits --data_dir D --resize 0", "--resize 0: must be at least 1"),
        ("x --data_dir D --ignore_label 0", "choose from"),
        ("convert x --data_dir D --ignore_label 255", "convert takes no"),
        ("imagenet2012 --data_dir D", "ILSVRC2012_img_train.tar"),
    ],
)
def test_refusals(line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert message in refusal(prepare_data.main, shlex.split(line), monkeypatch, capsys)
    assert [entry.name for entry in tmp_path.iterdir()] == ["empty"]


def test_a_data_dir_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["digits", "--data_dir", str(tmp_path / "file" / "data")]
    line = refusal(prepare_data.main, arguments, monkeypatch, capsys)
    assert "file/data" in line and "Not a directory" in line


def test_a_download_without_a_network(tmp_path, monkeypatch, capsys):
    def unreachable(self, request, **_):
        raise requests.exceptions.ConnectionError("no route", request=request)

    monkeypatch.setattr(requests.Session, "send", unreachable)
    monkeypatch.setattr(sys, "argv", ["_", "cifar10", "--data_dir", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        startup.run(prepare_data.main)
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == "error: building cifar10/3.0.2: ConnectionError: no route"
    assert not list((tmp_path / "cifar10").glob("*3.0.2"))


def test_images_and_masks(tmp_path, monkeypatch, capsys):
    expected = make_lip(tmp_path / "files")
    data = str(tmp_path / "data")
    arguments = ["lip", "--manual_dir", str(tmp_path / "files"), "--data_dir", data]
    whole = run(prepare_data.main, arguments, monkeypatch, capsys)
    again = run(prepare_data.main, ["lip", *arguments[3:]], monkeypatch, capsys)
    assert again == whole
    first, last = whole.strip().splitlines()
    assert "lip/1.0.0 in" in first
    assert re.search("train 5, validation 3 examples, 20 classes, [0-9.]+ kB", first)
    assert last == f"use it by --config.data.name=lip --config.data.data_dir={data}"
    small = run(prepare_data.main, [*arguments, "--resize", "12"], monkeypatch, capsys)
    assert "lip_12/1.0.0 in" in small and "20 classes" in small
    assert_same(stored("lip", data, "train"), expected["train"])
    assert {mask.shape for mask in stored("lip_12", data, "train").values()} == {
        (27, 12)
    }


def test_training_on_what_the_last_line_names(
    small_imagenet, tmp_path, monkeypatch, capsys
):
    arguments = ["imagenet2012", "--manual_dir", str(small_imagenet.archives)]
    arguments += ["--data_dir", str(tmp_path / "data"), "--no_checksums"]
    whole = run(prepare_data.main, arguments, monkeypatch, capsys)
    again = run(prepare_data.main, arguments, monkeypatch, capsys)
    small = run(prepare_data.main, [*arguments, "--resize", "48"], monkeypatch, capsys)
    arguments = ["imagenet2012_48", "--data_dir", str(tmp_path / "data")]
    assert run(prepare_data.main, arguments, monkeypatch, capsys) == small
    assert again == whole
    for name, output in (("imagenet2012", whole), ("imagenet2012_48", small)):
        first, last = output.strip().splitlines()
        assert f"{name}/5.1.0 in {tmp_path / 'data' / name / '5.1.0'}" in first
        assert re.search("train 30, validation 16 examples, [0-9.]+ [kM]B$", first)
        assert last.endswith(f"--config.data.data_dir={tmp_path / 'data'}")

    flags = [word for word in last.split() if word.startswith("--config")]
    assert flags[0] == "--config.data.name=imagenet2012_48"
    workdir = tmp_path / "run"
    overrides = [
        "--config.duration=3 steps",
        "--config.batch_size=8",
        "--config.model.width=8",
        "--config.model.stage_sizes=[1,1,1,1]",
        "--config.model.transformers=1",
        "--config.model.token_channels=32",
        "--config.model.heads=4",
        "--config.model.group_channels=16",
        "--config.data.image_size=32",
        "--config.data.eval_resize=36",
        "--config.schedule.warmup=1 steps",
        "--config.log.every=1 steps",
        "--config.log.tensorboard=False",
        "--format=json",
    ]
    result = run(
        train.main,
        ["--config", IMAGENET, "--workdir", str(workdir), *flags, *overrides],
        monkeypatch,
        capsys,
    )
    evaluations = json.loads(result)
    assert {row["examples"] for row in evaluations} == {16}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    # A thousand classes, none of them known: about ln 1000 = 6.9.
    assert len(losses) == 3 and all(5 < loss < 10 for loss in losses)
