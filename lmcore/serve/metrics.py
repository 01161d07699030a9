"""Metrics for Prometheus, in a registry of their own for each application."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lmcore.serve.generation import Generation

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PER_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """Counts what the server does."""

    def __init__(self, paths: frozenset[str]):
        """Begin at zero.

        Args:
            paths: to be told apart; all others count as `other`.
        """
        self.registry = CollectorRegistry()
        self._paths = paths
        registry = self.registry
        self._requests = Counter(
            "twinlm_requests", "Responses, by path and HTTP status.", ["path", "status"], registry=registry
        )
        self._prompt = Counter("twinlm_prompt_tokens", "Tokens of prompts of finished requests.", registry=registry)
        self._generated = Counter("twinlm_generated_tokens", "Tokens generated.", registry=registry)
        self._ended = Counter("twinlm_unfinished", "Generations that the client or an error ended.", registry=registry)
        self.active = Gauge("twinlm_active_slots", "Slots that decode a sequence.", registry=registry)
        self.slots = Gauge("twinlm_slots", "Slots.", registry=registry)
        self.waiting = Gauge("twinlm_queue_length", "Sequences that wait for a slot.", registry=registry)
        self._first = Histogram(
            "twinlm_time_to_first_token_seconds", "From request to first token.", buckets=SECONDS, registry=registry
        )
        self._each = Histogram(
            "twinlm_time_per_token_seconds",
            "Between tokens of a sequence, on average.",
            buckets=PER_TOKEN,
            registry=registry,
        )
        self._whole = Histogram(
            "twinlm_request_seconds", "From request to last token.", buckets=SECONDS, registry=registry
        )

    def count(self, path: str, status: int) -> None:
        """Count a response."""
        self._requests.labels(path if path in self._paths else "other", str(status)).inc()

    def generated(self, tokens: int, active: int) -> None:
        """Count the tokens of a step, and note the number of active slots."""
        if tokens:
            self._generated.inc(tokens)
        self.active.set(active)

    def finished(self, generation: Generation, seconds: float) -> None:
        """Count a generation that has ended, one way or another.

        Args:
            generation: the request.
            seconds: since its begin.
        """
        if generation.error is not None:
            self._ended.inc()
            return
        self._prompt.inc(generation.usage["prompt_tokens"])
        self._whole.observe(seconds)
        if generation.first is not None:
            self._first.observe(generation.first)
            longest = max(choice.tokens for choice in generation.choices)
            if longest > 1:
                self._each.observe((seconds - generation.first) / (longest - 1))

    def text(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self.registry)
