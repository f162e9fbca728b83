"""Twenty kills at random moments, and the result of a run that was left alone."""

from kills import compare


def test_twenty_kills_change_no_bit(digits, tmp_path):
    found = compare(tmp_path, {"data.data_dir": digits}, 20, print)
    assert found == {"starting": 7, "training": 7, "saving": 6}
