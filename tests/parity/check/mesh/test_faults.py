"""Each fault has a name of its own, and patches what is there."""

import pytest

from parity.check.mesh.faults import FAULTS, Fault, planted


def test_each_has_a_name_of_its_own():
    assert len({fault.key for fault in FAULTS}) == len(FAULTS)
    assert {fault.framework for fault in FAULTS} == {"jax", "torch"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.key)
def test_each_patches_what_is_there(fault: Fault):
    with planted(fault.key):
        pass
    with planted(None):
        pass
