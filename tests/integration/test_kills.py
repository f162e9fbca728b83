"""A run that is killed at random moments has the result of one that is not.

`python tests/helpers/kills.py --kills 20` is the longer form.
"""

import pytest
from kills import MOMENTS, compare

pytestmark = pytest.mark.slow


def test_kills_change_no_bit(digits, tmp_path):
    compare(tmp_path, digits, kills=len(MOMENTS))
