"""Faults of every kind, injected into real runs: `python -m tests.torture`, or `make torture`."""
