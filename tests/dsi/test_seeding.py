"""Seeds by purpose: the same everywhere, different for everything."""

import subprocess
import sys
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dsi.seeding import derive, numpy_rng

PARTS = st.lists(st.text("ab1:", max_size=3) | st.integers(0, 20), max_size=4)


def test_golden_values_do_not_change_with_the_version():
    # a change of these breaks the resumption of every run
    assert derive(0) == 3581690635855307741
    assert derive(7, "batches", 2, 15) == 3945269049526223464
    drawn = numpy_rng(7, "window", 3).integers(0, 1000, 5)
    assert drawn.tolist() == [765, 261, 932, 160, 349]


def test_another_process_derives_the_same():
    code = "from dsi.seeding import derive; print(derive(3, 'a', 4))"
    command = [sys.executable, "-c", code]
    assert int(subprocess.check_output(command)) == derive(3, "a", 4)


@given(PARTS, PARTS)
def test_equal_purposes_and_only_those_give_equal_seeds(one, other):
    assert (derive(1, *one) == derive(1, *other)) == (one == other)
    assert 0 <= derive(1, *one) < 2**63


def test_numbers_and_their_digits_are_different_purposes():
    assert len({derive(1, "1"), derive(1, 1), derive(1, "11"), derive(1, 1, 1), derive(1)}) == 5


def test_numpy_integers_are_integers():
    seed: Any = np.int64(5)
    part: Any = np.int32(2)
    assert derive(seed, part, "x") == derive(5, 2, "x")


def test_generators_are_fresh_and_leave_global_state_alone():
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    first, second = numpy_rng(1, "a"), numpy_rng(1, "a")
    assert np.array_equal(first.random(4), second.random(4))
    assert not np.array_equal(first.random(4), numpy_rng(1, "b").random(4))
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    np.testing.assert_equal(after, before)
