"""Families of models of Hugging Face, each in one file: what their `config.json` says, and their tensors.

A new family is one file beside these, and its name here.
"""

from lmcore.config import ModelConfig
from lmcore.errors import UserError
from parity.convert.families.base import Family
from parity.convert.families.gemma import GEMMA
from parity.convert.families.gemma2 import GEMMA2
from parity.convert.families.gemma3 import GEMMA3
from parity.convert.families.gpt2 import GPT2
from parity.convert.families.gpt_neox import GPT_NEOX
from parity.convert.families.granite import GRANITE
from parity.convert.families.llama import LLAMA
from parity.convert.families.mistral import MISTRAL
from parity.convert.families.olmo2 import OLMO2
from parity.convert.families.phi3 import PHI3
from parity.convert.families.qwen2 import QWEN2
from parity.convert.families.qwen3 import QWEN3
from parity.convert.families.smollm3 import SMOLLM3

__all__ = ["FAMILIES", "LLAMA", "QWEN3", "Family", "family_of", "fitting"]

ALL = (LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, OLMO2, PHI3, GRANITE, GEMMA, GEMMA2, GEMMA3, GPT2, GPT_NEOX)
FAMILIES: dict[str, Family] = {family.model_type: family for family in ALL}
"""`model_type` of `config.json` -> the family. A model is exported as the first that can express it."""


def family_of(model: ModelConfig, model_type: str = "") -> Family:
    """Return the family that a model is exported as.

    Args:
        model: its config.
        model_type: family that it was imported from, which it stays in if it can; empty for none.

    Raises:
        UserError: no family can express it; the message names each field of the nearest one.
    """
    family, differences = _nearest(model, model_type)
    if differences:
        raise UserError(f"{'; '.join(differences)}; keep it in jax or torch")
    return family


def fitting(model: ModelConfig) -> Family | None:
    """Return the family that a model is exported as, or None."""
    family, differences = _nearest(model)
    return None if differences else family


def _nearest(model: ModelConfig, model_type: str = "") -> tuple[Family, list[str]]:
    """Return the family with the fewest differences, the first of equals, and these."""
    first = [FAMILIES[model_type]] if model_type in FAMILIES else []
    differences = {family.model_type: family.differences(model) for family in (*first, *ALL)}

    def distance(name: str) -> tuple[bool, int]:
        return not all(each.startswith("model.") for each in differences[name]), len(differences[name])

    nearest = min(differences, key=distance)
    return FAMILIES[nearest], differences[nearest]
