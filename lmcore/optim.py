"""What the twins' optimizers agree on where their libraries leave it open, or mean different things by default."""

__all__ = ["ADAFACTOR_EPS", "MUON_EPS", "takes_muon"]

MUON_EPS = 1e-15
"""Least norm that a matrix is divided by before it is orthogonalized. optax adds it, torch takes the larger of the two,
so it is far below any norm that occurs, and still large enough for squares that underflow in float32."""
ADAFACTOR_EPS = 1e-15
"""Least root of an estimated mean of squares, for the same reason: optax adds its square, torch takes the larger."""


def takes_muon(name: str, ndim: int) -> bool:
    """Whether Muon trains a parameter, by its dotted name: the matrices of the blocks.

    Embeddings, output head, norms and biases are AdamW's (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
    """
    return name.startswith("layers.") and ndim == 2
