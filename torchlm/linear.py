"""Linear layers: a matmul with a weight, with or without a bias."""

from jaxtyping import Float
from torch import Tensor, nn

from torchlm.fast.linear import linear

__all__ = ["LINEARS", "BiasedLinear", "Linear"]


class Linear(nn.Linear):
    """A matmul without bias; the weight is stored output × input (jax stores input × output)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim, bias=False)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return linear(x, self.weight)


class BiasedLinear(nn.Linear):
    """A matmul, then a bias, added in the matmul's dtype."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        y = linear(x, self.weight)
        return y + self.bias.to(y.dtype)


LINEARS = {False: Linear, True: BiasedLinear}
"""Whether a linear layer of a block has a bias, as `ModelConfig.biased` says -> its class."""
