"""A JAX model of any library, as a side of a comparison."""
