"""What both models share without a framework: initial weights, RoPE tables, FLOPs and memory."""
