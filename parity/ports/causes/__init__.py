"""The usual causes of a difference between a port and its model, tried one at a time: the one that helps is named."""

from parity.ports.causes.models import likely, trials
from parity.ports.causes.optimizers import likely_optimizer
from parity.ports.causes.trial import Trial

__all__ = ["Trial", "likely", "likely_optimizer", "trials"]
