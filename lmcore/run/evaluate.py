"""`python -m jaxlm.evaluate RUN`, or torchlm: loss, perplexity and bits per byte of a trained model on a text."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmcore.config import Config, DataConfig, Device, Precision, cli, from_dict
from lmcore.data.batches import HEADER
from lmcore.errors import NotFinite, UserError, printable
from lmcore.files import check_sums

if TYPE_CHECKING:
    from lmcore.data.batches import Tokens
    from lmcore.data.corpus import Corpus
    from lmcore.data.tokenizer import Tokenizer
    from lmcore.run.checkpoints import Checkpoint

__all__ = ["main"]


def main(argv: Sequence[str] | None, package: str, make_engine: Callable, *, baseline_module: str) -> None:
    """Evaluate the model that the command line names and print a table.

    Args:
        argv: command-line arguments; None takes those of the process.
        package: name of the twin.
        make_engine: called with a config, returns an engine.
        baseline_module: Python module that evaluates a model of transformers, see `lmcore.run.baseline`.

    Raises:
        UserError: there is no such run, or its text is unavailable.
    """
    parser = cli.command_parser(
        f"python -m {package}.evaluate",
        "Evaluate a trained model: loss, perplexity and bits per byte, on the run's validation text or on other text. "
        "With a baseline, compare the bits per byte of two models on the same text, whatever their tokenizers.",
        "RUN [--data.files FILE ...] [--baseline MODEL]",
    )
    parser.add_argument("run", help="A run folder, for its best checkpoint, or one checkpoint.")
    parser.add_argument("--windows", type=int, default=0, help="Sequences to evaluate, evenly spaced; 0 takes all.")
    parser.add_argument("--batch_size", type=int, default=0, help="Sequences per batch; 0 takes the run's.")
    parser.add_argument("--precision", type=Precision | None, help="Dtype of the matmuls; null takes the run's.")
    parser.add_argument(
        "--device", type=Device, default="auto", help="Device to run on; auto takes an accelerator if there is one."
    )
    parser.add_argument(
        "--baseline", type=str | None, help="Causal LM of transformers: a local folder, or a name on the hub."
    )
    cli.add_no_verify(parser)
    parser.add_class_arguments(DataConfig, "data")
    args = cli.parse_arguments(parser, argv)
    if args.baseline is not None and args.windows:
        raise UserError(
            f"--windows: found {args.windows}, expected 0 with --baseline: windows of two tokenizers cover different "
            "text; shorten the text with --data.max_documents"
        )

    from lmcore.run.base import restore_model
    from lmcore.run.checkpoints import find_checkpoint
    from lmcore.run.engine import evaluate
    from lmcore.run.folder import load_run

    verify = not args.no_verify
    checkpoint = find_checkpoint(Path(args.run), verify=verify)
    checkpoint.check_framework(package.removesuffix("lm"))
    config, tokenizer = load_run(checkpoint, verify)
    train = replace(config.train, precision=args.precision or config.train.precision, device=args.device)
    with cli.named_as_options("eval"):
        sizes = replace(config.eval, windows=args.windows, batch_size=args.batch_size or config.eval.batch_size)
    config = replace(config, train=train, eval=sizes, checkpoint=replace(config.checkpoint, verify=verify))
    data = from_dict(DataConfig, args.data.as_dict())
    if _named(data):
        config = replace(config, data=replace(data, document_mask=data.document_mask or config.data.document_mask))
    if args.baseline is not None and config.data.format == "chat":
        raise UserError("--baseline: found conversations, expected text, which both models read in the same way")
    if not _named(data) and checkpoint.step == 0 and not (checkpoint.run_dir / HEADER).exists():
        raise UserError(f"{checkpoint.run_dir} was imported and has no text of its own; name one with --data.files")
    if args.baseline is not None:
        if not _named(data):
            _held_out(checkpoint, config, tokenizer)
        if verify:
            check_sums(Path(args.baseline))
        _compare(checkpoint, config, tokenizer, _corpus(config, data), (baseline_module, args.baseline), make_engine)
        return
    tokens, source = _tokens(checkpoint, config, data, tokenizer)
    config = _fitted(config, len(tokens))
    with cli.named_as_options("train"):
        engine = make_engine(config)
    restore_model(engine, config, checkpoint, verify)
    begin = time.monotonic()
    row = evaluate(engine, tokens, config, config.eval.windows)
    _check_finite(row["valid_loss"], checkpoint)
    table = {
        "checkpoint": f"{checkpoint.folder} (step {checkpoint.step:,})",
        "text": source,
        "tokens": f"{len(tokens):,} ({tokens.bytes_per_token:.3f} bytes per token)",
        "loss": f"{row['valid_loss']:.4f} nats per token",
        "perplexity": f"{row['valid_perplexity']:.2f}",
        "bits per byte": f"{row['valid_bits_per_byte']:.4f}",
        "time": f"{time.monotonic() - begin:.1f} s on {engine.device_name}",
    }
    for name, value in table.items():
        print(f"{name:13}  {printable(value)}")
    _note_unknown(tokens.unknown, "the text")


def _fitted(config: Config, tokens: int) -> Config:
    """Return the config with windows no longer, and batches no larger, than this number of tokens fills."""
    seq_len = min(config.train.seq_len, tokens - 1)
    windows = -(-(tokens - 1) // seq_len)
    batch_size = min(config.eval.batch_size, min(config.eval.windows or windows, windows))
    return replace(
        config, train=replace(config.train, seq_len=seq_len), eval=replace(config.eval, batch_size=batch_size)
    )


def _check_finite(loss: float, checkpoint: "Checkpoint") -> None:
    if not math.isfinite(loss):
        raise NotFinite(f"{checkpoint.folder}: the loss is {loss}: weights are not finite; evaluate another checkpoint")


def _corpus(config: Config, data: DataConfig) -> "Corpus":
    """Return the text to evaluate, that of `data` or the run's validation text, at most `max_documents` of it."""
    from lmcore.data.corpus import Capped
    from lmcore.data.sources import open_corpora, open_text

    corpus = open_text(data) if _named(data) else open_corpora(config.data)[1]
    return Capped(corpus, data.max_documents) if data.max_documents else corpus


def _named(data: DataConfig) -> bool:
    return bool(data.files) or data.dataset is not None


def _held_out(checkpoint: "Checkpoint", config: Config, tokenizer: "Tokenizer") -> "Tokens":
    """Return the run's validation tokens.

    Raises:
        UserError: the text has changed since training.
    """
    from lmcore.data.prepare import prepare

    prepared = prepare(config)
    if prepared.tokenizer.digest() != tokenizer.digest() or not prepared.is_of(checkpoint.run_dir):
        raise UserError("the run's training text has changed since; name a text to evaluate with --data.files")
    return prepared.valid


def _tokens(checkpoint: "Checkpoint", config: Config, data: DataConfig, tokenizer: "Tokenizer") -> "tuple[Tokens, str]":
    """Return the tokens to evaluate and a description of their text."""
    from lmcore.data.batches import Tokens
    from lmcore.data.encoding import encode
    from lmcore.data.marks import counts, token_ids

    corpus = _corpus(config, data)
    if not _named(data):
        held_out = _held_out(checkpoint, config, tokenizer)
        if not data.max_documents:
            return held_out, corpus.describe()
    chat = config.data.format == "chat"
    parts = list(_conversations(checkpoint, config, corpus, tokenizer) if chat else encode(tokenizer, corpus))
    ids = np.concatenate([ids for ids, _, _ in parts])
    unknown = 0 if tokenizer.unk_id is None else int(np.count_nonzero(token_ids(ids) == tokenizer.unk_id))
    documents, size = sum(part[1] for part in parts), sum(part[2] for part in parts)
    if len(ids) < 2:
        raise UserError(f"data: found {len(ids)} tokens in {corpus.describe()}, expected at least 2")
    tokens = Tokens(ids=ids, documents=documents, bytes=size, unknown=unknown, prefix=tokenizer.document_prefix)
    if chat:
        tokens = replace(tokens, targets=int(counts(ids).sum()))
    elif config.data.document_mask:
        tokens = replace(tokens, eot_id=tokenizer.eot_id)
    return tokens, corpus.describe()


def _conversations(
    checkpoint: "Checkpoint", config: Config, corpus: "Corpus", tokenizer: "Tokenizer"
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Encode conversations by the run's chat template, or by the one that the options name."""
    from lmcore.data.conversations import encode_conversations
    from lmcore.generate.chat import run_template

    template = run_template(checkpoint.run_dir, config.data.chat_template, config.checkpoint.verify)
    return encode_conversations(tokenizer, template, corpus)


def _compare(
    checkpoint: "Checkpoint",
    config: Config,
    tokenizer: "Tokenizer",
    corpus: "Corpus",
    baseline: tuple[str, str],
    make_engine: Callable,
) -> None:
    """Print the results of the run and of a model of transformers on the same text; `baseline` is (module, model)."""
    from lmcore.data.encoding import encode
    from lmcore.run.base import restore_model
    from lmcore.run.baseline import Measured, as_stream, measure_baseline
    from lmcore.run.engine import evaluate

    pieces = list(corpus)
    size, ends = sum(len(piece.text.encode()) for piece in pieces), sum(piece.ends for piece in pieces)
    if size == 0:
        raise UserError(f"data: found no text in {corpus.describe()}, expected at least one document")
    train = config.train
    other = measure_baseline(*baseline, pieces, train.seq_len, config.eval.batch_size, train.device)
    parts = (ids for ids, _, _ in encode(tokenizer, pieces))
    stream = as_stream(parts, tokenizer.eot_id, tokenizer.unk_id, size, tokenizer.document_prefix)
    stream = replace(stream, eot_id=tokenizer.eot_id) if config.data.document_mask else stream
    config = _fitted(replace(config, train=replace(train, seq_len=other.context)), len(stream))
    with cli.named_as_options("train"):
        engine = make_engine(config)
    restore_model(engine, config, checkpoint, config.checkpoint.verify)
    targets = len(stream) - 1 - int(np.isin(stream.ids[1:], stream.prefix).sum())
    loss = evaluate(engine, stream, config, 0)["valid_loss"]
    _check_finite(loss, checkpoint)
    own = Measured(
        parameters=engine.parameter_count,
        context=other.context,
        targets=targets,
        unknown=stream.unknown,
        nats=loss * targets,
    )
    print(f"checkpoint  {printable(str(checkpoint.folder))} (step {checkpoint.step:,})")
    print(f"text        {printable(corpus.describe())}: {ends:,} documents, {size:,} bytes")
    print(f"windows     {other.context} tokens for both, without overlap; documents ended by end-of-text")
    columns = [("", "parameters", "tokens", "bytes per token", "nats per token", "bits per byte")]
    for name, result in ((printable(checkpoint.run_dir.name), own), (printable(Path(baseline[1]).name), other)):
        rates = (
            f"{size / result.targets:.3f}",
            f"{result.nats / result.targets:.4f}",
            f"{result.bits_per_byte(size):.4f}",
        )
        columns.append((name, f"{result.parameters:,}", f"{result.targets:,}", *rates))
    widths = [max(map(len, column)) for column in columns]
    for first, *rest in zip(*columns):
        print("  ".join([first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(rest, widths[1:]))]))
    for (name, *_), result in zip(columns[1:], (own, other)):
        _note_unknown(result.unknown, name)


def _note_unknown(count: int, where: str) -> None:
    if count:
        print(f"note: {count:,} tokens of {where} are unknown tokens, so its bits per byte are too low")
