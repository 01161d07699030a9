"""The language model in PyTorch: train, evaluate and generate. Its twin is `jaxlm`."""

import os
import sys
from typing import TYPE_CHECKING

from lmcore import __version__
from lmcore.lazy import lazy

if TYPE_CHECKING:
    from torchlm.decoding import Generator
    from torchlm.engine import Engine
    from torchlm.model import Decoder

__all__ = ["Decoder", "Engine", "Generator", "__version__"]

__getattr__, __dir__ = lazy(
    __name__, {"Decoder": "torchlm.model", "Engine": "torchlm.engine", "Generator": "torchlm.decoding"}
)

if sys.platform == "darwin":  # read when torch is first imported: what MPS lacks then runs on the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
