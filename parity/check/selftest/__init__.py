"""Tests of the check itself: planted faults, and false alarms on healthy models."""
