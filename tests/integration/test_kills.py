"""Kills at random moments, and the result of a run that was left alone.

`python tests/kills.py --kills 20` is the longer form.
"""

from kills import compare


def test_kills_change_no_bit(digits, tmp_path):
    found = compare(tmp_path, {"data.data_dir": digits}, 9, print)
    assert found == {"starting": 3, "training": 3, "saving": 3}
