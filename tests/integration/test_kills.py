"""A run that is killed at random moments has the result of one that is not.

`python tests/helpers/kills.py --kills 20` is the longer form.
"""

import pytest
from kills import compare

pytestmark = pytest.mark.slow


def test_kills_change_no_bit(digits, tmp_path):
    found = compare(tmp_path, {"data.data_dir": digits}, 3, print)
    assert found == {"starting": 1, "training": 1, "saving": 1}
