"""Twenty kills at random moments, and the result of a run that was left alone."""

from kills import LONG, Run, disturb
from pods import assert_same_run


def test_twenty_kills_change_no_bit(digits, tmp_path):
    changes = LONG | {"data.data_dir": digits}
    whole, parts = Run(tmp_path / "w", changes), Run(tmp_path / "p", changes)
    with whole.life() as (_, end, _):
        end()
    found = disturb(parts, 20, 0, print)
    assert found == {"starting": 7, "training": 7, "saving": 6}
    assert_same_run(parts.folder, whole.folder)
