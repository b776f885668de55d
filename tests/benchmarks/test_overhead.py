"""How the overhead benchmark turns the times of steps into the cost of a rotation."""

import pytest

from benchmarks.overhead import INTERVAL, rotation_shares


def test_the_extra_time_of_a_rotation_is_a_share_of_its_window():
    warm_up = [9.0] * INTERVAL
    window = [1.3, 1.1, *[1.0] * (INTERVAL - 2)]
    assert rotation_shares([*warm_up, *window, *[2.0] * INTERVAL]) == [pytest.approx(0.4 / INTERVAL), 0]
