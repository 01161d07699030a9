"""`generate --chat`: a conversation with a model, through its chat template."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lmcore.config import SampleConfig
from lmcore.data.batches import HEADER, read_header
from lmcore.data.chat import SETTINGS, ChatTemplate, Message, find_template, read_template
from lmcore.data.conversations import check_special, encode_turns, stops_of
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError, printable
from lmcore.files import check_files
from lmcore.generate.prompting import Generator, Text, continue_texts, max_prompt_tokens

__all__ = ["Chat", "reply", "run_template"]


def run_template(run_dir: Path, setting: str | None, verify: bool = True) -> ChatTemplate:
    """Return the chat template of a run, or the one that an option names.

    Args:
        run_dir: the run folder.
        setting: of the option; None takes the run's own.
        verify: whether to compare the run's own with its checksum.

    Raises:
        UserError: there is none, or it cannot be read.
        Damaged: it does not match its checksum.
    """
    if setting is not None:
        try:
            return find_template(setting, str(run_dir / "tokenizer.json"))
        except UserError as error:
            raise UserError(str(error).replace("data.chat_template", "--template")) from error
    if verify and (run_dir / HEADER).exists():
        sums = read_header(run_dir).get("files", {})
        check_files(run_dir, {name: digest for name, digest in sums.items() if name == SETTINGS})
    if template := read_template(run_dir):
        return template
    raise UserError(
        f"{run_dir}: found no chat template, which a run has that was trained on conversations or imported with one; "
        "name one with --template"
    )


def reply(
    generator: Generator,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    options: SampleConfig,
    *,
    context: int,
) -> Iterator[Text]:
    """Yield the assistant's growing reply to a conversation; it ends with its turn, or at `max_tokens`.

    Where the conversation is too long for the context, its oldest turns are left out, but for the system's.

    Args:
        generator: a twin's generator.
        tokenizer: the model's tokenizer; its stop tokens end a turn.
        template: writes the conversation.
        messages: all turns so far.
        options: number of tokens and seed.
        context: maximum context length in tokens.
    """
    messages, ids = list(messages), encode_turns(tokenizer, template, messages)
    while len(ids) > max_prompt_tokens(context) and (oldest := _oldest_turn(messages)):
        del messages[oldest]
        ids = encode_turns(tokenizer, template, messages)
    for texts in continue_texts(generator, tokenizer, [Text("")], [ids], options, context=context):
        yield texts[0]


def _oldest_turn(messages: Sequence[Message]) -> slice | None:
    """Return the oldest messages up to the second of the user's, without the system's; None where it has but one."""
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    return slice(users[0], users[1]) if len(users) > 1 else None


class Chat:
    """A conversation in a terminal, or with lines of text that are piped in."""

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        options: SampleConfig,
        context: int,
        system: str | None = None,
    ):
        """Begin a conversation.

        Args:
            generator: a twin's generator.
            tokenizer: the model's tokenizer.
            template: writes the conversation.
            options: number of tokens and seed.
            context: maximum context length in tokens.
            system: text of a message that comes before all others; None leaves it out.
        """
        self.generator, self.template, self.options, self.context = generator, template, options, context
        tokenizer.stop_ids |= stops_of(tokenizer, template)
        self.tokenizer = tokenizer
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        check_special(tokenizer, self.messages)

    def say(self, content: str) -> str:
        """Print the assistant's reply to a message as it grows, and return it; Ctrl-C stops it there.

        Raises:
            UserError: the message spells out a special token, or the template refuses the conversation.
        """
        message = {"role": "user", "content": content}
        check_special(self.tokenizer, [message])
        self.messages.append(message)
        shown = ""
        growing = reply(
            self.generator, self.tokenizer, self.template, self.messages, self.options, context=self.context
        )
        try:
            for text in growing:
                print(_shown(text.text[len(shown) :]), end="", flush=True)
                shown = text.text
        except KeyboardInterrupt:
            pass
        finally:
            print()  # so that an error message starts on a new line, too
        self.messages.append({"role": "assistant", "content": shown})
        self.options = replace(self.options, seed=self.options.seed + 1)
        return shown

    def interact(self) -> None:
        """Reply to one line after another, until the input ends or Ctrl-C is pressed."""
        terminal = sys.stdin.isatty()
        if terminal:
            print("Ctrl-C stops a reply; Ctrl-D, or Ctrl-C between replies, ends.", file=sys.stderr)
        while True:
            try:
                line = input("> " if terminal else "")
            except (EOFError, KeyboardInterrupt):
                if terminal:
                    print(file=sys.stderr)
                return
            if not line.strip():
                continue
            try:
                self.say(line)
            except UserError as error:
                if not terminal:
                    raise
                print(f"note: {error}", file=sys.stderr)


def _shown(text: str) -> str:
    """Escape control characters for a terminal, where they could move the cursor or worse."""
    return printable(text) if sys.stdout.isatty() else text
