"""The framework-independent core: config, data, initialization, learning-rate schedule, and the training loop.

Nothing in this package imports jax or torch.
"""

from typing import TYPE_CHECKING

from lmcore.lazy import lazy

if TYPE_CHECKING:
    from lmcore.config import Config

__all__ = ["Config", "__version__"]

__version__ = "0.1.0"

__getattr__, __dir__ = lazy(__name__, {"Config": "lmcore.config.schema"})
