"""The command prepare_data: rejected options, and a result that configures training."""

import pathlib
import re
import shlex
import sys

import pytest
import requests

from vt_flax.cli import prepare_data, startup
from vt_flax.data.sources import open_source
from vt_flax.training.config import load_config

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
        ("cifar10 mnist --data_dir D", "write NAME, or convert NAME"),
        ("convert cifar10 --data_dir D --resize 9", "convert takes no"),
        ("cifar10 --data_dir D --out_dir E", "--out_dir is for convert"),
        ("cifar10 --data_dir gs://bucket/D", "buckets are not supported yet"),
        ("imagenet2012 --data_dir D", "ILSVRC2012_img_train.tar"),
    ],
)
def test_refusals(line, message, tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert message in refusal(prepare_data.main, *shlex.split(line))
    assert [entry.name for entry in tmp_path.iterdir()] == ["empty"]


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


def test_the_last_line_configures_a_training(
    small_imagenet, tmp_path, monkeypatch, capsys
):
    data = tmp_path / "data"
    arguments = ["imagenet2012", "--manual_dir", str(small_imagenet.archives)]
    arguments += ["--data_dir", str(data), "--resize", "48"]
    output = run(prepare_data.main, arguments, monkeypatch, capsys)
    first, last = output.strip().splitlines()
    assert f"imagenet2012_48/5.1.0 in {data / 'imagenet2012_48' / '5.1.0'}" in first
    assert re.search("train 30, validation 16 examples, [0-9.]+ [kM]B$", first)
    flags = [word for word in last.split() if word.startswith("--config")]
    config = load_config(IMAGENET, flags)
    for split, count in ((config.data.train_split, 30), (config.data.eval_split, 16)):
        source = open_source(config.data.name, split, config.data.data_dir)
        assert len(source) == count and len(source.class_names) == 1000
