"""Bad input gets one line and exit status 2, and nothing saved is lost."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from vt_flax.cli import evaluate, parsing, startup, train
from vt_flax.data.folders import FolderSource
from vt_flax.training.config import load_config
from vt_flax.training.workdir import RunRecord, check_resumable

QUICKSTART = str(pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py")


def test_an_override_is_no_option_s_value():
    """Though there is a space in it, before which argparse stops."""
    parser = parsing.make_parser("evaluate", "")
    parser.add_argument("--tokens", nargs="?", const="")
    parser.add_argument("images", nargs="*")
    overrides = ["--config.data.data_dir=/my data", "-config.duration=3 epochs"]
    words = ["a photo.png", "--tokens", overrides[0], overrides[1], "--config.seed=1"]
    args, rest = parser.parse_known_args(words)
    assert (args.tokens, args.images) == ("", ["a photo.png"])
    assert rest == [*overrides, "--config.seed=1"]


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.model.name=vt_resnet81", "did you mean vt_resnet18"),
        ("--config.schedule.learning_rte=0.1", "did you mean schedule.learning_rate"),
        ("--config.optimizer.name=adam", "adam"),
        ("--config.model.stage_sizes=[1,1,1,1.5]", "stage_sizes[3] must be int"),
        ("--config.batch_size=0", "batch_size 0: must be at least 1"),
        ("--config.data.std=[1,1,1e999]", "config.data.std[2] inf: must be finite"),
        ("--config.duration=5", "duration '5': write '1000 steps' or '90 epochs'"),
        ("--config.eval.every=0 steps", "eval.every '0 steps': must be over 0"),
        ("--config.data.name=digts", "did you mean digits"),
        ("--config.data.train_split=trian", "Should be one of"),
        ("--config.model.num_classes=12", "num_classes 12: digits train has 10"),
        ("--config.model.tokens=7", "even number of tokens"),
        ("--config.batch_size=12", "multiple of the 8 devices"),
        ("--config.model.bn_group_size=5", "does not divide"),
        ("--config.parallel.cpu_devices=3", "JAX has started with 8 in this process"),
        ("--cnfig.seed=1", "--cnfig.seed=1"),
    ],
)
def test_train_refuses(argument, message, digits, tmp_path, refusal):
    workdir = tmp_path / "run"
    words = ["--config", QUICKSTART, "--workdir", workdir]
    words += [f"--config.data.data_dir={digits}", argument]
    assert message in refusal(train.main, *words)
    assert not workdir.exists()


def test_train_refuses_files_and_folders(tmp_path, refusal):
    workdir = ("--workdir", tmp_path / "run")
    assert "required" in refusal(train.main, *workdir)
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    assert "SyntaxError" in refusal(train.main, *workdir, "--config", broken)
    words = ("--config", QUICKSTART)
    bucket = refusal(train.main, *words, "--workdir", "gs://bucket/run")
    assert "buckets are not supported yet" in bucket
    (tmp_path / "empty").mkdir()
    words += (f"--config.data.name=folder:{tmp_path / 'empty'}",)
    line = refusal(train.main, *words, *workdir, "--config.data.train_split=all")
    assert "no images in" in line
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_model_is_left_alone(digits, tmp_path, refusal):
    words = ["--config", QUICKSTART, "--workdir", tmp_path]
    words.append(f"--config.data.data_dir={digits}")
    RunRecord(load_config(QUICKSTART).to_dict()).write(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    line = refusal(train.main, *words, "--config.model.tokens=16")
    assert "model.tokens: 8 -> 16" in line and "choose another workdir" in line
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before

    # All formulations have the same parameters.
    other = load_config(QUICKSTART, ["--config.model.formulation=fused"])
    assert len(check_resumable(tmp_path, RunRecord(other.to_dict()))) == 1

    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in refusal(train.main, *words)


def test_a_workdir_of_other_data_is_left_alone(tmp_path, refusal):
    """The same folder, whose content has changed."""
    images, workdir = tmp_path / "images", tmp_path / "run"
    for label in "ab":
        (images / label).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (9, 9)).save(images / label / f"{i}.png")
    words = [f"--config.data.name=folder:{images}"]
    words += [f"--config.data.{split}_split=all" for split in ("train", "eval")]
    config, source = load_config(QUICKSTART, words), FolderSource(images, "all")
    workdir.mkdir()
    record = RunRecord.of(config, source)
    record.write(workdir)
    before = (workdir / "config.json").read_bytes()
    words += ["--config", QUICKSTART, "--workdir", workdir]
    assert check_resumable(workdir, record) == []
    (images / "a" / "3.png").rename(images / "a" / "5.png")
    line = refusal(train.main, *words)
    assert "examples to train on" in line and "choose another workdir" in line
    (images / "b").rename(images / "c")
    assert "class 1: 'b' -> 'c'" in refusal(train.main, *words)
    # Weights know classes by number.
    line = refusal(evaluate.main, "--workdir", workdir)
    assert f"has other classes than the run in {workdir}: class 1: 'b' -> 'c'" in line
    assert (workdir / "config.json").read_bytes() == before


def test_a_workdir_that_cannot_be_read_or_written(digits, tmp_path, refusal):
    file = tmp_path / "file"
    file.write_text("")
    line = refusal(evaluate.main, "--workdir", file)
    assert f"{file}/config.json cannot be read (NotADirectoryError: " in line
    words = ["--config", QUICKSTART, f"--config.data.data_dir={digits}"]
    line = refusal(train.main, *words, "--workdir", file)
    assert line.startswith("error: --workdir ") and "File exists" in line


def test_evaluate_notes_classes_without_images(tmp_path, monkeypatch, capsys):
    for place, count in (("train/a", 64), ("train/b", 64), ("val/a", 3), ("val/b", 0)):
        folder = tmp_path / "images" / place
        folder.mkdir(parents=True)
        for i in range(count):
            Image.new("L", (9, 9)).save(folder / f"{i}.png")
    (tmp_path / "images" / "val" / "a" / "0.heic").write_bytes(b"")
    name = f"folder:{tmp_path / 'images'}"
    words = [f"--config.data.name={name}", "--config.data.eval_split=val"]
    (tmp_path / "run").mkdir()
    RunRecord(load_config(QUICKSTART, words).to_dict(), ["a", "b"]).write(
        tmp_path / "run"
    )
    workdir = str(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["evaluate", "--workdir", workdir])
    with pytest.raises(SystemExit):
        startup.run(evaluate.main)
    *notes, error = capsys.readouterr().err.splitlines()
    assert notes[-2].endswith("have no suffix of an image: 1 (.heic)")
    assert notes[-1] == f"note: {name} val has no images of 1 of the 2 classes: b"
    assert "holds no checkpoint" in error


def test_a_device_without_memory_is_one_line(refusal, capsys):
    def fill_memory(_):
        jnp.zeros(2**46)

    def fail(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    error = refusal(fill_memory)
    assert "a device is out of memory (RESOURCE_EXHAUSTED: Out of memory all" in error
    assert "grad_accum_steps=2" in error and "batch_size" in error
    with pytest.raises(SystemExit) as stop:
        startup.run(fail)
    assert stop.value.code == 1
    assert "Traceback" in capsys.readouterr().err
