"""The learning-rate schedule (`schedule`), and the state of each optimizer (`table`)."""
