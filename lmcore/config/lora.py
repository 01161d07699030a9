"""The group `model.lora`: low-rank adapters of a model whose own weights stay as they are."""

from dataclasses import dataclass, field

from lmcore.config.values import at_least, require

__all__ = ["ADAPTED", "LoraConfig"]

ADAPTED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}
"""Name of each linear layer of a block that can have an adapter -> the module that holds it."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adaptation: W + alpha/rank · B A, of which only A and B are trained (Hu et al. 2021, arXiv:2106.09685).

    The other weights are those of `train.init_from`, which checkpoints name and do not repeat.
    """

    rank: int = 8
    """Rank r of the matrices A (r × inputs) and B (outputs × r)."""
    alpha: float = 16.0
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout probability in training, for the inputs of the adapters alone."""
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Linear layers of each block that have an adapter: any of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and
    down_proj."""

    def __post_init__(self) -> None:
        group = "model.lora"
        at_least(group, self, 1, "rank")
        require(group, "alpha", self.alpha, self.alpha > 0, "more than 0")
        require(group, "dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and less than 1")
        known = set(self.targets) <= ADAPTED.keys() and len(set(self.targets)) == len(self.targets) > 0
        require(group, "targets", self.targets, known, f"one or several of {', '.join(ADAPTED)}")

    @property
    def scale(self) -> float:
        """Factor of B A in the adapted weight."""
        return self.alpha / self.rank
