"""What became of an injected fault."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Outcome", "Verdict"]

Verdict = Literal["survived", "refused", "lost"]


@dataclass(frozen=True)
class Outcome:
    """One injected fault, and what became of it."""

    fault: str
    """What was done, with enough detail to do it again."""
    verdict: Verdict
    """survived: the run ended as the unbroken one, or the damage was harmless. refused: one line said what is wrong,
    and nothing was lost. lost: anything else."""
    detail: str = ""
    """What was seen, where something was lost."""
