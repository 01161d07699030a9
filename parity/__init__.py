"""Compare the twins, convert between them and Hugging Face, and time them.

In a test suite of your own: `from parity import compare, convert, match, record, tap`.
"""

from typing import TYPE_CHECKING

from lmcore import __version__
from lmcore.lazy import lazy

if TYPE_CHECKING:
    from parity.compare import compare
    from parity.convert.conversion import convert
    from parity.match import match
    from parity.record import record
    from parity.taps import tap

__all__ = ["__version__", "compare", "convert", "match", "record", "tap"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "compare": "parity.compare",
        "convert": "parity.convert",
        "match": "parity.match",
        "record": "parity.record",
        "tap": "parity.taps",
    },
)
