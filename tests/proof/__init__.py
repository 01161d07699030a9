"""Proof that `parity.compare` is right both ways: planted faults are caught and named, and equal models agree."""
