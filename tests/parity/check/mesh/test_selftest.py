"""The check across meshes catches every fault, and passes without one."""

import pytest

from parity.check.mesh.faults import FAULTS
from parity.check.mesh.selftest import self_test


@pytest.mark.slow
def test_every_fault_is_caught_and_no_other_alarm_is_raised():
    caught = list(self_test())
    assert [f"{one.framework}: {one.name}" for one in caught if not one.ok] == []
    assert sum(one.fault is not None for one in caught) == len(FAULTS)
    assert any(one.fault is None for one in caught)
