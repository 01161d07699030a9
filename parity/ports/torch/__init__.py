"""A torch module, as a side of a comparison."""
