"""What both models share in NumPy: weight initialization, position tables, FLOPs and memory."""
