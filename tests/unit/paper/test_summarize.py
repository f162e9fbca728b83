"""`summarize` on models: their parts, and arguments that it rejects."""

import json

import pytest

from vt_flax.cli import summarize
from vt_flax.errors import UserError


def parts(capsys, *argv):
    summarize.main([*argv, "--format", "json"])
    return {row["part"]: row for row in json.loads(capsys.readouterr().out)}


def test_parts_of_a_model_with_options(capsys):
    options = [f"--set={x}" for x in ("width=8", "num_classes=10", "stem=small")]
    found = parts(capsys, "fpn_resnet18", "--image_size", "32x64", *options)
    assert {"stage5", "fpn", "head"} < set(found)
    # 3 x 3 of stride 1, and its normalization.
    assert found["stem"]["macs"] == 32 * 64 * 8 * 3 * 9
    assert found["stem"]["params"] == 8 * 3 * 9 + 2 * 8
    total = found.pop("total")
    for key in ("macs", "params"):
        assert total[key] == sum(row[key] for row in found.values())


def test_a_table_for_people(capsys):
    summarize.main(["resnet18", "--image_size", "32"])
    text = capsys.readouterr().out
    assert text.startswith("32 x 32")
    head = f"{512 * 1000 + 1000:,}"
    assert any("head" in line and head in line for line in text.splitlines())


@pytest.mark.parametrize(
    "argv,message",
    [
        (["resnt18"], "no model matches 'resnt18'.*did you mean resnet18"),
        (["resnet18", "--set", "widht=8"], "no option 'widht'.*did you mean width"),
        (["resnet18", "--set", "width"], "'width': write"),
        (["resnet18", "--set", "stage_sizes=[1,1]"], "stage_sizes"),
        (["resnet18", "--image_size", "64x0"], "--image_size 64x0: must be at least 1"),
        (["resnet18", "--image_size", "9" * 20], "at most 65536"),
        (["resnet18", "--image_size", "8x8x8"], "'8x8x8': write a side"),
        (["--paper", "resnet18"], "--paper takes no GLOB"),
        (["--papr"], "--papr"),
    ],
)
def test_bad_arguments(argv, message):
    with pytest.raises(UserError, match=message):
        summarize.main(argv)
