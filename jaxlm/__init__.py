"""The language model in JAX: train, evaluate and generate. Its twin is `torchlm`."""

from typing import TYPE_CHECKING

from lmcore import __version__
from lmcore.lazy import lazy

if TYPE_CHECKING:
    from jaxlm.decoding import Generator
    from jaxlm.engine import Engine
    from jaxlm.model import Decoder

__all__ = ["Decoder", "Engine", "Generator", "__version__"]

__getattr__, __dir__ = lazy(
    __name__, {"Decoder": "jaxlm.model", "Engine": "jaxlm.engine", "Generator": "jaxlm.decoding"}
)
