"""Ablations: a plan of named changes to one config, the runs of all of them, and their report."""
