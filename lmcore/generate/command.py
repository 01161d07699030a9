"""`python -m jaxlm.generate RUN`, and its twin: text from a trained model, streamed, in a batch, or at a prompt."""

import os
import stat
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcore.config import Device, Precision, SampleConfig, cli, from_dict
from lmcore.errors import NotFinite, UserError

if TYPE_CHECKING:
    from lmcore.data.tokenizer import Tokenizer
    from lmcore.generate.prompting import Generator, Text

__all__ = ["main"]


def main(argv: Sequence[str] | None, package: str, make_engine: Callable) -> None:
    """Generate text as the command line says.

    Raises:
        UserError: there is no such run.
    """
    parser = cli.command_parser(
        f"python -m {package}.generate",
        "Let a trained model write. Of a prompt that is too long for the model's context, the last part is read; when "
        "the context is full, its older half is forgotten. An empty prompt begins a new document; text piped in is a "
        "prompt.",
        "RUN [--prompt TEXT ...] [--interactive]",
    )
    parser.add_argument("run", help="A run folder, for its best checkpoint, or one checkpoint.")
    parser.add_argument(
        "--prompt",
        type=list[str] | None,
        help="Texts to go on from, one or several; - reads standard input; null the text piped in, else the run's.",
    )
    parser.add_argument("--special", type=bool, default=False, help="Read special tokens, such as </s>, from prompts.")
    parser.add_argument("--interactive", action="store_true", help="Ask for prompts until the input ends.")
    parser.add_argument("--precision", type=Precision | None, help="Type of the matrix products; null takes the run's.")
    parser.add_argument("--device", type=Device, default="auto", help="What to run on; auto takes an accelerator.")
    cli.add_no_verify(parser)
    parser.add_class_arguments(SampleConfig, skip={"every", "prompt"})
    args = cli.parse_arguments(parser, argv)

    from lmcore.run.checkpoints import find_checkpoint
    from lmcore.run.folder import load_run

    checkpoint = find_checkpoint(Path(args.run), verify=not args.no_verify)
    checkpoint.check_framework(package.removesuffix("lm"))
    config, tokenizer = load_run(checkpoint, verify=not args.no_verify)
    names = [name for name in SampleConfig.__dataclass_fields__ if name in args]
    precision = args.precision or config.train.precision
    train = replace(config.train, precision=precision, device=args.device, cpu_devices=1)
    with cli.named_as_options("sample", "train"):
        options = from_dict(SampleConfig, {name: args[name] for name in names if name != "prompt"}, "sample.")
        prompts = [] if args.interactive else _prompts(args.prompt, config.sample.prompt)
        engine = make_engine(replace(config, train=train))
    engine.restore(checkpoint.state, optimizer=False)
    writer = Writer(Finite(engine.generator(options)), tokenizer, options, config.model.max_seq_len, args.special)
    if args.interactive:
        writer.interact()
    else:
        writer.write(prompts)


def _prompts(given: list[str] | None, default: str) -> list[str]:
    """What the command line gives, `-` standing for standard input; else the text piped in, else the run's prompt."""
    if given is None:
        return [(_read_input() if _is_piped() else "") or default]
    piped = _read_input() if "-" in given else ""
    return [piped if prompt == "-" else prompt for prompt in given]


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file: not a terminal, nor the empty device that a job in the night has."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # it is closed, or no file of the system
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_input() -> str:
    """Text on standard input, without the line end that `echo` puts after it.

    Raises:
        UserError: it is not UTF-8.
    """
    print("reading the prompt from standard input", file=sys.stderr)
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt: found text on standard input that is not UTF-8 ({error}); convert it") from error
    return text.replace("\r\n", "\n").removesuffix("\n")


class Finite:
    """A generator that refuses to write where the model knows nothing: NaN is no distribution to draw from."""

    def __init__(self, inner: "Generator"):
        self._inner = inner
        self.extend, self.has_nan = inner.extend, inner.has_nan

    def start(self, tokens: np.ndarray, pads: np.ndarray, size: int) -> Any:
        """Read prompts.

        Raises:
            NotFinite: the next token would be drawn from NaN.
        """
        state = self._inner.start(tokens, pads, size)
        if self.has_nan(state):
            raise NotFinite("the model gives NaN for every token: its weights are not finite; take another checkpoint")
        return state


class Writer:
    """Prints what a model writes."""

    def __init__(
        self, generator: "Generator", tokenizer: "Tokenizer", options: SampleConfig, context: int, special: bool = False
    ):
        self.generator, self.tokenizer, self.options = generator, tokenizer, options
        self.context, self.special = context, special
        # Neither a character that the terminal cannot show nor bytes that are no character must end the program.
        for stream in (sys.stdin, sys.stdout):
            getattr(stream, "reconfigure", lambda **_: None)(errors="replace")

    def write(self, prompts: Sequence[str]) -> None:
        """Write after each prompt: one is streamed, several are printed when all are done."""
        from lmcore.generate.prompting import longest_prompt

        for prompt in prompts:
            over = len(self.tokenizer.encode_prompt(prompt, self.special)) - longest_prompt(self.context)
            if over > 0:
                print(f"note: left out the first {over} tokens of a prompt: there is no room", file=sys.stderr)
        begin = time.monotonic()
        marks = [(sum(len(text.tokens) for text in texts), time.monotonic()) for texts in self._show(prompts)]
        (first, warm), (count, end) = marks[0], marks[-1]
        rate = f", then {(count - first) / (end - warm):,.0f} tokens/s" if count > first else ""
        print(f"{count} tokens: the first {first} after {warm - begin:.1f} s{rate}", file=sys.stderr)

    def interact(self) -> None:
        """Ask for a prompt and write, until the input ends; Ctrl-C drops a line or text. Each text has its own seed."""
        print("An empty line begins a new document; Ctrl-C stops a text or line, Ctrl-D ends.", file=sys.stderr)
        while True:
            try:
                prompt = input("> ")
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                print()
                continue
            try:
                for _ in self._show([prompt]):
                    pass
            except KeyboardInterrupt:
                pass
            self.options = replace(self.options, seed=self.options.seed + 1)

    def _show(self, prompts: Sequence[str]) -> "Iterator[list[Text]]":
        """Yield the texts as they grow, having printed what is new; several prompts are printed at the end."""
        from lmcore.generate.prompting import write_texts

        growing = write_texts(
            self.generator, self.tokenizer, prompts, self.options, context=self.context, special=self.special
        )
        if len(prompts) != 1:
            texts: list[Text] = []
            for texts in growing:
                yield texts
            for number, text in enumerate(texts, start=1):
                print(f"--- {number} ---\n{_printable(text.prompt + text.text)}\n")
            return
        shown = 0
        print(_printable(prompts[0]), end="", flush=True)
        try:
            for texts in growing:
                print(_printable(texts[0].text[shown:]), end="", flush=True)
                shown = len(texts[0].text)
                yield texts
        finally:
            print()  # an error's line, too, begins a new one


def _printable(text: str) -> str:
    """Text as a terminal may have it: a control character, which could move the cursor or worse, becomes its name."""
    if not sys.stdout.isatty():
        return text
    control = (c for c in set(text) if unicodedata.category(c) == "Cc" and c not in "\n\t")
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in control})
