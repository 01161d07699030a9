"""A twin's engine as a model of lm-eval, which gives the results of lm-eval's own `HFLM` on the exported model.

Text is encoded as there: the tokens that the tokenizer's template puts before a text come first, and an empty context
is the token that begins a text. What is longer than the context loses its beginning.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int32
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from lmcore.config import Config, SampleConfig
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import NotFinite, UserError
from lmcore.generate.prompting import CHUNK, WIDTH, Generator, cache_size, draw_uniforms, pad_left

__all__ = ["EngineLM"]

IGNORED = -1
"""Target of a position that is not asked for."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
"""Settings of a generation task that are fields of `SampleConfig` by the same names."""

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""The two texts, and the token ids of context and continuation."""


@runtime_checkable
class Engine(Protocol):
    """What is asked of a twin's engine."""

    def score(
        self, tokens: Int32[np.ndarray, "B T"], targets: Int32[np.ndarray, "B T"]
    ) -> tuple[Float[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Return the log-probability of each target, 0 for −1, and whether it is the most likely token."""

    def generator(self, options: SampleConfig) -> Generator:
        """Return a generator of text."""


class EngineLM(TemplateLM):
    """Answers lm-eval's requests with an engine whose weights are loaded."""

    def __init__(self, engine: Engine, config: Config, tokenizer: Tokenizer, batch_size: int):
        """Set up the adapter.

        Args:
            engine: a twin's engine.
            config: of the run.
            tokenizer: of the run.
            batch_size: maximum number of sequences at a time.
        """
        super().__init__()
        self.engine, self.tokenizer, self.batch_size = engine, tokenizer, batch_size
        self.max_length, self.seed = config.model.max_seq_len, config.sample.seed

    @property
    def eot_token_id(self) -> int:
        """Id of end-of-text."""
        return self.tokenizer.eot_id

    @property
    def prefix_token_id(self) -> int:
        """Id of the token that begins a text."""
        return self.tokenizer.prefix_ids[0] if self.tokenizer.prefix_ids else self.tokenizer.eot_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Encode text; special tokens that it spells out stay text."""
        prefix = [] if add_special_tokens is False else list(self.tokenizer.prefix_ids)
        return prefix + self.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return for each request the continuation's log-probability, and whether it is what greedy decoding gives."""
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        longest_first = sorted(range(len(requests)), key=lambda i: -len(requests[i][1] + requests[i][2]))
        for begin in range(0, len(requests), self.batch_size):
            batch = longest_first[begin : begin + self.batch_size]
            for index, answer in zip(batch, self._score([requests[i][1:] for i in batch]), strict=True):
                answers[index] = answer
                if (texts := requests[index][0]) is not None:  # None in a part of a rolling request
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Answer one batch: padding on the right, which earlier tokens don't attend to, changes nothing."""
        rows = [(context + continuation)[-(self.max_length + 1) :] for context, continuation in pairs]
        width = min(self.max_length, -(-max(len(row) - 1 for row in rows) // WIDTH) * WIDTH)
        tokens = np.zeros((self.batch_size, width), np.int32)  # always a whole batch: one shape, one compiled program
        targets = np.full((self.batch_size, width), IGNORED, np.int32)
        for i, (row, (_, continuation)) in enumerate(zip(rows, pairs, strict=True)):
            end, count = len(row) - 1, len(continuation)
            tokens[i, :end] = row[:-1]
            targets[i, end - count : end] = continuation
        logprobs, greedy = self.engine.score(tokens, targets)
        answers = []
        for wanted, values, most_likely in zip(targets[: len(rows)] != IGNORED, logprobs, greedy):
            answers.append((math.fsum(values[wanted].tolist()), bool(most_likely[wanted].all())))
        if not all(math.isfinite(value) for value, _ in answers):
            raise NotFinite("the model gives log-probabilities that are not finite; evaluate another checkpoint")
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return each text's log-probability, in windows of the context's length without overlap."""
        windows = [self._windows(request.args[0]) for request in requests]
        answers = iter(self._loglikelihood_tokens([window for text in windows for window in text]))
        return [math.fsum(next(answers)[0] for _ in text) for text in windows]

    def _windows(self, text: str) -> list[Request]:
        ids = self.tok_encode(text)
        windows = utils.get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
        return [(None, *utils.make_disjoint_window(window)) for window in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the text that follows each prompt, up to the first of its stop sequences."""
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        for group in groups.values():
            options, stops = self._options(requests[group[0]].args[1])
            prompts = {i: self.tok_encode(requests[i].args[0]) or [self.prefix_token_id] for i in group}
            group.sort(key=lambda i: -len(prompts[i]))
            for begin in range(0, len(group), self.batch_size):
                batch = group[begin : begin + self.batch_size]
                for index, text in zip(batch, self._write([prompts[i] for i in batch], options, stops), strict=True):
                    texts[index] = text
                    self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return texts

    def _options(self, settings: dict[str, Any]) -> tuple[SampleConfig, list[str]]:
        """Return sampling options and stop sequences of a generation task.

        Raises:
            UserError: a setting has no meaning here, or the context has no room for so many tokens.
        """
        settings = dict(normalize_gen_kwargs(settings))
        end = self.tokenizer.inner.id_to_token(self.tokenizer.eot_id)
        stops = handle_stop_sequences(settings.pop("until", None), eos=end)
        max_tokens, samples = settings.pop("max_gen_toks"), settings.pop("do_sample")
        if not max_tokens < self.max_length:
            raise UserError(
                f"--gen_kwargs: found max_gen_toks {max_tokens}, expected less than model.max_seq_len = "
                f"{self.max_length}; set --gen_kwargs max_gen_toks={self.max_length // 2}"
            )
        named = {name: settings.pop(name) for name in SAMPLING if name in settings}
        if unknown := {name for name, value in settings.items() if (name, value) != ("num_beams", 1)}:
            known = ", ".join(("until", "max_gen_toks", "do_sample", *SAMPLING))
            raise UserError(f"--gen_kwargs: found {', '.join(sorted(unknown))}, expected any of {known}")
        named = named if samples else {"temperature": 0.0}
        return SampleConfig(max_tokens=max_tokens, seed=self.seed, **named), stops

    def _write(self, prompts: Sequence[list[int]], options: SampleConfig, stops: list[str]) -> list[str]:
        """Generate until each text has a stop sequence, or as many tokens as are asked for."""
        tokens, pads = pad_left(prompts, self.max_length - options.max_tokens, self.tokenizer.eot_id)
        size = min(self.max_length, cache_size(tokens.shape[1] + options.max_tokens))
        uniforms = draw_uniforms(options.seed, len(prompts), options.max_tokens)
        generator = self.engine.generator(options)
        state = generator.start(tokens, pads, size)
        if generator.has_nan(state):
            raise NotFinite("the model gives NaN for every token; evaluate another checkpoint")
        ids: list[list[int]] = [[] for _ in prompts]
        for begin in range(0, options.max_tokens, CHUNK):
            new, state = generator.extend(state, uniforms[:, begin : begin + CHUNK])
            for row, more in zip(ids, new.tolist(), strict=True):
                row.extend(more)
            texts = [self._text(row, stops) for row in ids]
            if all(ended for _, ended in texts):
                break
        return [text for text, _ in texts]

    def _text(self, ids: list[int], stops: list[str]) -> tuple[str, bool]:
        """Return the text of generated ids before the first stop, and whether there is one."""
        end = next((i for i, token in enumerate(ids) if token in self.tokenizer.stop_ids), None)
        whole = self.tokenizer.decode(ids[:end])
        text = postprocess_generated_text(whole, stops, None)
        return text, end is not None or len(text) < len(whole)
