"""Flax NNX's LSTM, with eight kernels, and torch's, with two; its second bias has no counterpart."""

import jax
import numpy as np
import torch
from flax import nnx
from torch import nn

from parity import compare
from parity.transforms import chain, concat, transpose

SIZE, HIDDEN = 5, 4


class Lstm(nn.Module):
    """All outputs of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIZE, HIDDEN, batch_first=True)
        nn.init.zeros_(self.lstm.bias_ih_l0)  # Flax has one bias, torch adds two

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs alone, without the last state."""
        return self.lstm(x)[0]


def main() -> int:
    """Compare the two; return the exit code."""
    x = np.random.default_rng(0).standard_normal((3, 7, SIZE))
    with jax.enable_x64(True):
        cell = nnx.LSTMCell(SIZE, HIDDEN, param_dtype=np.float64, rngs=nnx.Rngs(0))  # the carry has this type
    gates = ("i", "f", "g", "o")
    names = {
        tuple(f"cell.i{'f_' if gate == 'f' else gate}.kernel" for gate in gates): (
            "lstm.weight_ih_l0",
            chain(transpose(), concat()),
        ),
        tuple(f"cell.h{gate}.kernel" for gate in gates): ("lstm.weight_hh_l0", chain(transpose(), concat())),
        tuple(f"cell.h{gate}.bias" for gate in gates): ("lstm.bias_hh_l0", concat()),
    }
    report = compare(nnx.RNN(cell), Lstm(), x, names=names, only_torch=["lstm.bias_ih_l0"])
    print(report)
    return 0 if report else 1


if __name__ == "__main__":
    raise SystemExit(main())
