"""Chat templates: a conversation as text, and which of its characters the assistant wrote.

Templates are Jinja, rendered as transformers renders them, in a sandbox: a template comes with a model and is a program
by somebody else. The assistant's characters are those within `{% generation %}`, where the template has such blocks.
Elsewhere they are found by rendering the conversation up to each of the assistant's turns and up to its end, which must
be beginnings of the whole.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmcore.errors import UserError
from lmcore.parsing import read_json, read_text

__all__ = ["CHATML", "CHATML_TOKENS", "SETTINGS", "ChatTemplate", "Message", "Span", "find_template", "read_template"]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template where there is no other."""
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
"""Special tokens that it needs: before and after each turn."""

SETTINGS = "tokenizer_config.json"
"""File in which a folder has its template and special tokens, as Hugging Face folders have."""
MAX_TEMPLATE_BYTES = 1 << 20
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Names by which a template finds special tokens."""
BLOCK = re.compile(r"{%-?\s*generation\b")
BEGIN, END = "\ufdd0", "\ufdd1"
"""Noncharacters that mark the output of a generation block."""

Message = Mapping[str, Any]
"""A turn of a conversation: `role`, `content`, and what else a template may read."""
Span = tuple[int, int]
"""First character, and the one after the last."""


class Generation(Extension):
    """The block `{% generation %}`, whose output is put between BEGIN and END."""

    tags = {"generation"}  # noqa: RUF012  as the library declares it

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{BEGIN}{caller()}{END}"


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and the special tokens that it names."""

    source: str
    """Jinja source."""
    tokens: dict[str, str] = field(default_factory=dict)
    """`bos_token`, `eos_token` and others -> token."""
    name: str = "data.chat_template"
    """Where it comes from, for messages."""

    @cached_property
    def _compiled(self) -> jinja2.Template:
        options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
        environment = ImmutableSandboxedEnvironment(**options, extensions=[Generation, loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self.name}: line {error.lineno} is not valid Jinja ({error.message})") from error

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """Return the text of a conversation.

        Args:
            messages: its turns.
            prompt: whether to end with what comes before the assistant's next turn.

        Raises:
            UserError: the template is not valid, or refuses the conversation.
        """
        return self._marked(messages, prompt).replace(BEGIN, "").replace(END, "")

    def _marked(self, messages: Sequence[Message], prompt: bool = False) -> str:
        try:
            options = {"add_generation_prompt": prompt, "tools": None, "documents": None}  # as transformers gives them
            return self._compiled.render(messages=messages, **options, **self.tokens)
        except UserError:
            raise
        except Exception as error:  # a template is a program: it can raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.name}: the template does not render the conversation ({reason})") from error

    def assistant_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Return the text of a conversation, and the assistant's parts of it, with what ends each turn.

        Raises:
            UserError: the template is not valid or refuses the conversation, or the parts cannot be found.
        """
        text = self._marked(messages)
        if BLOCK.search(self.source):
            return _within_blocks(text)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, through = self.render(messages[:number], prompt=True), self.render(messages[: number + 1])
            if not (text.startswith(through) and through.startswith(before)):
                raise UserError(
                    f"{self.name}: the template writes the turns up to message {number + 1} differently when more "
                    "follow, so that the assistant's part cannot be found; use one with {% generation %}"
                )
            spans.append((len(before), _end_of_turn(through, message["content"])))
        return text, spans

    def save(self, folder: Path) -> None:
        """Write `tokenizer_config.json`."""
        content = json.dumps({"chat_template": self.source, **self.tokens}, indent=2, ensure_ascii=False)
        (folder / SETTINGS).write_text(content + "\n", encoding="utf-8")


def _within_blocks(marked: str) -> tuple[str, list[Span]]:
    """Return a text without BEGIN and END, and the parts between them."""
    spans, text = [], ""
    for part in re.split(f"({BEGIN}.*?{END})", marked, flags=re.DOTALL):
        plain = part.replace(BEGIN, "").replace(END, "")
        if part.startswith(BEGIN):
            spans.append((len(text), len(text) + len(plain)))
        text += plain
    return text, spans


def _end_of_turn(through: str, content: str) -> int:
    """Return where the assistant's last turn ends: white space after a token that ends it does not belong to it."""
    trimmed = through.rstrip()
    return len(trimmed) if not trimmed.endswith(content.rstrip()) else len(through)


def find_template(setting: str | None, tokenizer_file: str | None) -> ChatTemplate:
    """Return the template to prepare conversations with.

    Args:
        setting: `data.chat_template`.
        tokenizer_file: `tokenizer.file`, beside which an imported model has its template and special tokens.

    Raises:
        UserError: a file cannot be read.
    """
    own = None if tokenizer_file is None else read_template(Path(tokenizer_file).parent)
    if setting is None:
        return own or ChatTemplate(CHATML)
    tokens = own.tokens if own else {}
    if "{{" in setting or "{%" in setting:
        return ChatTemplate(setting, tokens)
    path = Path(setting).expanduser()
    if not path.is_file():
        raise UserError(f"data.chat_template: found no file {setting!r}, expected one, or a template itself")
    return ChatTemplate(_source(path), tokens, str(path))


def read_template(folder: Path) -> ChatTemplate | None:
    """Return the template that a Hugging Face folder, a prepared folder or a run has; None where it has none.

    Raises:
        UserError: a file cannot be read.
    """
    for place in (folder, folder / "huggingface"):  # where an imported run keeps the files that came with it
        settings = _fields(place / SETTINGS)
        tokens = {name: _content(settings[name]) for name in TOKENS if settings.get(name)}
        path = place / "chat_template.jinja"
        if path.is_file():
            return ChatTemplate(_source(path), tokens, str(path))
        for name in ("chat_template.json", SETTINGS):
            source = _fields(place / name).get("chat_template")
            if isinstance(source, list):  # of several, by name
                source = {each["name"]: each["template"] for each in source}.get("default")
            if isinstance(source, str):
                return ChatTemplate(source, tokens, str(place / name))
    return None


def _source(path: Path) -> str:
    try:
        return read_text(path, MAX_TEMPLATE_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a chat template ({error})") from error


def _fields(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path}: found {type(fields).__name__}, expected fields")
    return fields


def _content(token: Any) -> str:
    """Return the text of a token, which may be an object with further fields."""
    return token["content"] if isinstance(token, dict) else str(token)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Write JSON as transformers does: the library's own filter would escape characters of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
