"""Parts of a block for decoding, in which linear layers that share their input are one product.

A decoded token reads every weight once for little arithmetic, so fewer and larger matrices are faster. In training they
gain nothing, and apart they have names that every Llama shares.
"""

from jaxtyping import Float
from torch import Tensor, nn

from lmcore.config import ModelConfig
from torchlm.mlps import GEGLU
from torchlm.model import Attention, SwiGLU
from torchlm.norms import NoNorm

__all__ = ["MERGED", "Merged", "MergedAttention", "MergedGEGLU", "MergedSwiGLU"]


class Merged(nn.Module):
    """What the parts have in common: one linear layer, `merged`, in place of those named in `names`."""

    names: tuple[str, ...]

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        layers = [getattr(self, name) for name in self.names]
        self.widths = [layer.out_features for layer in layers]
        self.merged = type(layers[0])(config.dim, sum(self.widths))
        for name in self.names:
            delattr(self, name)

    def project(self, x: Float[Tensor, "B T D"]) -> tuple[Tensor, ...]:
        """The outputs of all layers, in their order."""
        return self.merged(x).split(self.widths, dim=-1)


class MergedAttention(Merged, Attention):
    """Attention with queries, keys and values from one product, and one rotation, unless a norm comes between."""

    names = ("q_proj", "k_proj", "v_proj")

    def heads(
        self, x: Float[Tensor, "B T D"], cos: Float[Tensor, "#B T _"], sin: Float[Tensor, "#B T _"]
    ) -> tuple[Float[Tensor, "B T N H"], Float[Tensor, "B T K H"], Float[Tensor, "B T K H"]]:
        """As in `Attention`."""
        n, k, _ = (width // self.head_dim for width in self.widths)
        heads = self.merged(x).view(*x.shape[:2], n + 2 * k, self.head_dim)
        if isinstance(self.q_norm, NoNorm):
            queries_keys, values = heads.split([n + k, k], dim=2)
            queries, keys = self.turn(queries_keys, cos, sin).split([n, k], dim=2)
            return queries, keys, values
        queries, keys, values = heads.split([n, k, k], dim=2)
        return self.turn(self.q_norm(queries), cos, sin), self.turn(self.k_norm(keys), cos, sin), values


class MergedSwiGLU(Merged, SwiGLU):
    """SwiGLU with both its inner layers in one product."""

    names = ("gate_proj", "up_proj")


class MergedGEGLU(Merged, GEGLU):
    """GEGLU with both its inner layers in one product."""

    names = ("gate_proj", "up_proj")


MERGED = {Attention: MergedAttention, SwiGLU: MergedSwiGLU, GEGLU: MergedGEGLU}
"""Part -> what decodes in its place; a part with a single layer on its input stays."""
