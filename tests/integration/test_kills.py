"""Kills at random moments, and the result of a run that was left alone.

`python tests/helpers/kills.py --kills 20` is the longer form.
"""

import pytest
from kills import compare

pytestmark = pytest.mark.slow


def test_kills_change_no_bit(digits, tmp_path):
    found = compare(tmp_path, {"data.data_dir": digits}, 6, print)
    assert found == {"starting": 2, "training": 2, "saving": 2}
