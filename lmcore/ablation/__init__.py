"""Ablations: named changes to one config (`plan`), the runs of all of them (`runner`), and their report (`report`)."""
