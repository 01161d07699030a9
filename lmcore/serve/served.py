"""The model that is served: its name and shape, and how requests become token ids for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmcore.config import ModelConfig, SampleConfig
from lmcore.data.chat import ChatTemplate
from lmcore.data.conversations import check_special, encode_turns, stops_of
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError, shown
from lmcore.serve.errors import ApiError
from lmcore.serve.generation import Prompt
from lmcore.serve.logprobs import TokenTexts

__all__ = ["Served", "count_prompts"]


def count_prompts(prompt: Any) -> int:
    """Return the number of prompts in a request's field of that name."""
    return len(_prompts(prompt))


def _prompts(prompt: Any) -> list[Any]:
    """Return the prompts in a field: a string and a list of token ids are one."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


@dataclass(eq=False)
class Served:
    """A model, and what requests need to know of it."""

    name: str
    """Id of the model."""
    package: str
    """Name of the twin."""
    device: str
    parameters: int
    created: int
    """When it was saved, in seconds since 1970."""
    model: ModelConfig
    sampling: SampleConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None

    def __post_init__(self) -> None:
        self.context = self.model.max_seq_len
        self.texts = TokenTexts(self.tokenizer)
        self.stop_ids = self.tokenizer.stop_ids
        """Tokens that end a text."""
        self.turn_ids = self.stop_ids
        """Tokens that end the assistant's turn."""
        if self.template is not None:
            self.turn_ids |= stops_of(self.tokenizer, self.template)
        vocabulary = self.tokenizer.inner.get_vocab(with_added_tokens=True)
        self._longest = max(map(len, vocabulary))

    def check_name(self, name: str | None) -> None:
        """Check that a request means this model.

        Raises:
            ApiError: it means another.
        """
        if name is not None and name != self.name:
            message = f"model: found {shown(name, 80)}, expected {self.name!r}, which this server has"
            raise ApiError(404, message, "model", "model_not_found")

    def encode(self, prompt: Any) -> list[Prompt]:
        """Return the prompts of a request's field in any of its four forms.

        Raises:
            ApiError: a prompt is too long, or has tokens that the model lacks.
        """
        return [self._encode(each) for each in _prompts(prompt)]

    def _encode(self, prompt: str | list[int]) -> Prompt:
        if isinstance(prompt, str):
            self._check_size(len(prompt), "prompt")
            try:
                return Prompt(prompt, self.tokenizer.encode_prompt(prompt))
            except UserError as error:
                raise ApiError(400, f"prompt: {error}", "prompt") from error
        highest = max(prompt)
        if highest >= self.model.vocab_size:
            message = f"prompt: found token {shown(highest, 80)}, expected ids less than {self.model.vocab_size}"
            raise ApiError(400, message, "prompt")
        return Prompt(None, prompt)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> Prompt:
        """Return a conversation as the model's template writes it.

        Raises:
            ApiError: the model has no template, or the conversation does not fit it.
        """
        if self.template is None:
            message = (
                f"model: {self.name!r} has no chat template, expected a model trained on conversations or imported "
                "with one, or a server started with --template; use /v1/completions"
            )
            raise ApiError(400, message, "model", "no_chat_template")
        self._check_size(sum(len(message["content"]) for message in messages), "messages")
        try:
            check_special(self.tokenizer, messages)
            return Prompt(None, encode_turns(self.tokenizer, self.template, messages) or [self.tokenizer.eot_id])
        except UserError as error:
            raise ApiError(400, f"messages: {error}", "messages") from error

    def _check_size(self, characters: int, param: str) -> None:
        """Check that a text is not too long whatever its tokens are, before time is spent on finding them."""
        if characters > self.context * self._longest:
            message = f"{param}: found {characters} characters, too many for the context of {self.context} tokens"
            raise ApiError(400, message, param, "context_length_exceeded")

    def length(self, prompt: Prompt, maximum: int | None, param: str) -> int:
        """Return the maximum number of tokens to generate after a prompt.

        Args:
            prompt: the prompt.
            maximum: from the request; None takes what the context has room for.
            param: field that has the prompt.

        Raises:
            ApiError: the context has no room for both.
        """
        size = len(prompt.ids)
        if size + (1 if maximum is None else maximum) > self.context:
            what = "" if maximum is None else f" and max_tokens {maximum}, together {size + maximum}"
            message = f"{param}: found {size} tokens{what}, expected at most {self.context}, the model's context"
            if maximum is None:
                message += ", with room for at least one more"
            raise ApiError(400, message, param, "context_length_exceeded")
        return self.context - size if maximum is None else maximum
