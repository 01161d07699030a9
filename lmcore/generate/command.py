"""`python -m jaxlm.generate RUN`, or torchlm: generate text, streamed, as a batch, or interactively."""

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcore.config import Device, Precision, SampleConfig, cli, from_dict
from lmcore.errors import NotFinite, UserError, printable
from lmcore.model.quantize import WeightFormat

if TYPE_CHECKING:
    from lmcore.data.tokenizer import Tokenizer
    from lmcore.generate.prompting import Generator, Text

__all__ = ["main"]


def main(argv: Sequence[str] | None, package: str, make_engine: Callable) -> None:
    """Generate text as the command line says.

    Args:
        argv: command-line arguments; None takes those of the process.
        package: name of the twin.
        make_engine: called with a config, returns an engine.

    Raises:
        UserError: there is no such run, or an option is invalid.
    """
    parser = cli.command_parser(
        f"python -m {package}.generate",
        "Generate text with a trained model. Of a prompt that is too long for the model's context, only the last part "
        "is used; when the context is full, its older half is dropped. An empty prompt begins a new document; text "
        "piped to standard input is a prompt.",
        "RUN [--prompt TEXT ...] [--interactive | --chat]",
    )
    parser.add_argument("run", help="A run folder, for its best checkpoint, or one checkpoint.")
    parser.add_argument(
        "--prompt",
        type=list[str] | None,
        help="One or several prompts; - reads standard input; null takes the text piped in, else the run's prompt.",
    )
    parser.add_argument("--special", type=bool, default=False, help="Encode special tokens, such as </s>, in prompts.")
    parser.add_argument("--interactive", action="store_true", help="Ask for prompts until the input ends.")
    parser.add_argument(
        "--chat",
        action="store_true",
        help="Converse by the model's chat template: each prompt, or each line of the input, is a message.",
    )
    parser.add_argument("--system", type=str | None, help="Message of the system that begins a chat.")
    parser.add_argument(
        "--template", type=str | None, help="Jinja chat template, or its file; null takes the model's own."
    )
    parser.add_argument("--precision", type=Precision | None, help="Dtype of the matmuls; null takes the run's.")
    parser.add_argument(
        "--weights",
        type=WeightFormat,
        default="full",
        help="int8 decodes with weights of 8 bits, one scale for each output channel: faster for a single sequence.",
    )
    parser.add_argument(
        "--device", type=Device, default="auto", help="Device to run on; auto takes an accelerator if there is one."
    )
    cli.add_no_verify(parser)
    parser.add_class_arguments(SampleConfig, skip={"every", "prompt"})
    args = cli.parse_arguments(parser, argv)
    for name in ("system", "template"):
        if args[name] is not None and not args.chat:
            raise UserError(f"--{name}: found {args[name]!r} without --chat, expected both")

    from lmcore.run.base import restore_model
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
        prompts = [] if args.interactive or args.chat else _prompts(args.prompt, config.sample.prompt)
        engine = make_engine(replace(config, train=train))
    if args.chat:
        from lmcore.generate.chat import Chat, run_template

        template = run_template(checkpoint.run_dir, args.template, verify=not args.no_verify)
    restore_model(engine, config, checkpoint, not args.no_verify)
    if args.chat:
        generator = Finite(engine.generator(options, args.weights))
        chat = Chat(generator, tokenizer, template, options, config.model.max_seq_len, args.system)
        for prompt in args.prompt or []:
            chat.say(prompt)
        if args.prompt is None:
            chat.interact()
        return
    generator = Finite(engine.generator(options, args.weights))
    writer = Writer(generator, tokenizer, options, config.model.max_seq_len, args.special)
    if args.interactive:
        writer.interact()
    else:
        writer.write(prompts)


def _prompts(options: list[str] | None, default: str) -> list[str]:
    """Return the prompts of the command line (`-` is standard input), else the text piped in, else the default."""
    if options is None:
        return [(_read_input() if _is_piped() else "") or default]
    piped = _read_input() if "-" in options else ""
    return [piped if prompt == "-" else prompt for prompt in options]


def _is_piped() -> bool:
    """Return whether standard input is a pipe or a file, rather than a terminal or /dev/null, as in a cron job."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # standard input is closed, or has no file descriptor
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_input() -> str:
    """Read standard input, without the newline that `echo` appends.

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
    """A generator that raises if the logits are NaN, from which no token can be drawn."""

    def __init__(self, inner: "Generator"):
        self._inner = inner
        self.extend, self.has_nan = inner.extend, inner.has_nan

    def start(self, tokens: np.ndarray, pads: np.ndarray, size: int) -> Any:
        """Prefill the KV cache with prompts, as `Generator.start` does.

        Raises:
            NotFinite: the next token would be drawn from NaN.
        """
        state = self._inner.start(tokens, pads, size)
        if self.has_nan(state):
            raise NotFinite("the model gives NaN for every token: its weights are not finite; use another checkpoint")
        return state


class Writer:
    """Prints generated text."""

    def __init__(
        self, generator: "Generator", tokenizer: "Tokenizer", options: SampleConfig, context: int, special: bool = False
    ):
        """Set up generation.

        Args:
            generator: a twin's generator.
            tokenizer: the model's tokenizer.
            options: number of tokens and seed.
            context: maximum context length in tokens.
            special: whether to encode special tokens in prompts.
        """
        self.generator, self.tokenizer, self.options = generator, tokenizer, options
        self.context, self.special = context, special
        # Neither a character that the terminal cannot encode nor invalid UTF-8 in the input may end the program.
        for stream in (sys.stdin, sys.stdout):
            getattr(stream, "reconfigure", lambda **_: None)(errors="replace")

    def write(self, prompts: Sequence[str]) -> None:
        """Generate text after each prompt: a single one is streamed, several are printed when all are done."""
        from lmcore.generate.prompting import max_prompt_tokens

        for prompt in prompts:
            over = len(self.tokenizer.encode_prompt(prompt, self.special)) - max_prompt_tokens(self.context)
            if over > 0:
                print(f"note: dropped the first {over} tokens of a prompt: the context is too short", file=sys.stderr)
        begin = time.monotonic()
        progress = [(sum(len(text.tokens) for text in texts), time.monotonic()) for texts in self._show(prompts)]
        (first, warm), (count, end) = progress[0], progress[-1]
        rate = f", then {(count - first) / (end - warm):,.0f} tokens/s" if count > first else ""
        print(f"{count} tokens: the first {first} after {warm - begin:.1f} s{rate}", file=sys.stderr)

    def interact(self) -> None:
        """Ask for prompts and generate until the input ends; Ctrl-C drops a line or text. Every text has a new seed."""
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
        """Print texts and yield them as they grow; with several prompts, print all at the end."""
        from lmcore.generate.prompting import generate_texts

        growing = generate_texts(
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
            print()  # so that an error message starts on a new line, too


def _printable(text: str) -> str:
    """Escape control characters for a terminal, where they could move the cursor or worse."""
    if not sys.stdout.isatty():
        return text
    return printable(text)
