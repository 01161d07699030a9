"""`python -m jaxlm.evaluate RUN`, and its twin: loss, perplexity and bits per byte of a trained model on a text."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmcore.config import Config, DataConfig, Device, Precision, cli, from_dict
from lmcore.data.batches import HEADER
from lmcore.errors import NotFinite, UserError

if TYPE_CHECKING:
    from lmcore.data.batches import Tokens
    from lmcore.data.corpus import Corpus
    from lmcore.data.tokenizer import Tokenizer
    from lmcore.run.checkpoints import Checkpoint

__all__ = ["main"]


def main(argv: Sequence[str] | None, package: str, make_engine: Callable, *, baseline_module: str) -> None:
    """Evaluate the model that the command line names and print a table.

    Args:
        argv: words of the command line; None takes the process's.
        package: name of the twin.
        make_engine: of a config.
        baseline_module: which measures a model of transformers, in a process of its own; see `lmcore.run.baseline`.

    Raises:
        UserError: there is no such run, or its text cannot be had.
    """
    parser = cli.command_parser(
        f"python -m {package}.evaluate",
        "Measure a trained model: loss, perplexity and bits per byte, on the run's validation text or on other text. "
        "With a baseline, compare bits per byte of two models on the same text, whatever their tokenizers.",
        "RUN [--data.files FILE ...] [--baseline MODEL]",
    )
    parser.add_argument("run", help="A run folder, for its best checkpoint, or one checkpoint.")
    parser.add_argument("--windows", type=int, default=0, help="Sequences to evaluate, evenly spread; 0 takes all.")
    parser.add_argument("--batch_size", type=int, default=0, help="Sequences at a time; 0 takes the run's.")
    parser.add_argument("--precision", type=Precision | None, help="Type of the matrix products; null takes the run's.")
    parser.add_argument("--device", type=Device, default="auto", help="What to run on; auto takes an accelerator.")
    parser.add_argument("--baseline", type=str | None, help="Causal LM of transformers: a local folder or a hub name.")
    cli.add_no_verify(parser)
    parser.add_class_arguments(DataConfig, "data")
    args = cli.parse_arguments(parser, argv)
    if args.baseline is not None and args.windows:
        raise UserError(
            f"--windows: found {args.windows}, expected 0 with --baseline: windows of two tokenizers hold different "
            "texts; shorten the text with --data.max_documents"
        )

    from lmcore.run.checkpoints import find_checkpoint
    from lmcore.run.folder import load_run
    from lmcore.run.trainer import evaluate

    verify = not args.no_verify
    checkpoint = find_checkpoint(Path(args.run), verify=verify)
    checkpoint.check_framework(package.removesuffix("lm"))
    config, tokenizer = load_run(checkpoint, verify)
    train = replace(config.train, precision=args.precision or config.train.precision, device=args.device)
    with cli.named_as_options("eval"):
        sizes = replace(config.eval, windows=args.windows, batch_size=args.batch_size or config.eval.batch_size)
    config = replace(config, train=train, eval=sizes, checkpoint=replace(config.checkpoint, verify=verify))
    data = from_dict(DataConfig, args.data.as_dict())
    if not _named(data) and checkpoint.step == 0 and not (checkpoint.run_dir / HEADER).exists():
        raise UserError(f"{checkpoint.run_dir} was imported and has no text of its own; name one with --data.files")
    if args.baseline is not None:
        if not _named(data):
            _held_out(checkpoint, config, tokenizer)
        _compare(checkpoint, config, tokenizer, _corpus(config, data), (baseline_module, args.baseline), make_engine)
        return
    tokens, source = _tokens(checkpoint, config, data, tokenizer)
    config = _fitted(config, len(tokens))
    with cli.named_as_options("train"):
        engine = make_engine(config)
    engine.restore(checkpoint.state, optimizer=False)
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
        print(f"{name:13}  {value}")
    _note_unknown(tokens.unknown, "the text")


def _fitted(config: Config, tokens: int) -> Config:
    """The config with windows no wider, and batches no larger, than so many tokens fill."""
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
    """The text to evaluate: all of what `data` names, or what the run held out; its first documents where asked."""
    from lmcore.data.corpus import Capped, open_corpora, open_text

    corpus = open_text(data) if _named(data) else open_corpora(config.data)[1]
    return Capped(corpus, data.max_documents) if data.max_documents else corpus


def _named(data: DataConfig) -> bool:
    return bool(data.files) or data.dataset is not None


def _held_out(checkpoint: "Checkpoint", config: Config, tokenizer: "Tokenizer") -> "Tokens":
    """The run's validation tokens.

    Raises:
        UserError: the text is not what it was in training.
    """
    from lmcore.data.prepare import prepare

    prepared = prepare(config)
    if prepared.tokenizer.digest() != tokenizer.digest() or not prepared.is_of(checkpoint.run_dir):
        raise UserError("the run's training text has changed since; name a text to evaluate with --data.files")
    return prepared.valid


def _tokens(checkpoint: "Checkpoint", config: Config, data: DataConfig, tokenizer: "Tokenizer") -> tuple["Tokens", str]:
    """The text to evaluate, as the run's tokenizer reads it."""
    from lmcore.data.batches import Tokens
    from lmcore.data.encoding import encode

    corpus = _corpus(config, data)
    if not _named(data):
        whole = _held_out(checkpoint, config, tokenizer)
        if not data.max_documents:
            return whole, corpus.describe()
    parts = list(encode(tokenizer, corpus))
    ids = np.concatenate([ids for ids, _, _ in parts])
    unknown = 0 if tokenizer.unk_id is None else int(np.count_nonzero(ids == tokenizer.unk_id))
    documents, size = sum(part[1] for part in parts), sum(part[2] for part in parts)
    if len(ids) < 2:
        raise UserError(f"data: found {len(ids)} tokens in {corpus.describe()}, expected at least 2")
    prefix = tokenizer.document_prefix
    return Tokens(ids=ids, documents=documents, bytes=size, unknown=unknown, prefix=prefix), corpus.describe()


def _compare(
    checkpoint: "Checkpoint",
    config: Config,
    tokenizer: "Tokenizer",
    corpus: "Corpus",
    baseline: tuple[str, str],
    make_engine: Callable,
) -> None:
    """Print what the run and a model of transformers make of the same text; `baseline` is a module and its model."""
    from lmcore.data.encoding import encode
    from lmcore.run.baseline import Measured, as_stream, measure_baseline
    from lmcore.run.trainer import evaluate

    pieces = list(corpus)
    size, ends = sum(len(piece.text.encode()) for piece in pieces), sum(piece.ends for piece in pieces)
    if size == 0:
        raise UserError(f"data: found no text in {corpus.describe()}, expected at least one document")
    train = config.train
    other = measure_baseline(*baseline, pieces, train.seq_len, config.eval.batch_size, train.device)
    parts = (ids for ids, _, _ in encode(tokenizer, pieces))
    stream = as_stream(parts, tokenizer.eot_id, tokenizer.unk_id, size, tokenizer.document_prefix)
    config = _fitted(replace(config, train=replace(train, seq_len=other.context)), len(stream))
    with cli.named_as_options("train"):
        engine = make_engine(config)
    engine.restore(checkpoint.state, optimizer=False)
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
    print(f"checkpoint  {checkpoint.folder} (step {checkpoint.step:,})")
    print(f"text        {corpus.describe()}: {ends:,} documents, {size:,} bytes")
    print(f"windows     {other.context} tokens for both, without overlap; documents ended by end-of-text")
    columns = [("", "parameters", "tokens", "bytes per token", "nats per token", "bits per byte")]
    for name, found in ((checkpoint.run_dir.name, own), (Path(baseline[1]).name, other)):
        figures = f"{size / found.targets:.3f}", f"{found.nats / found.targets:.4f}", f"{found.bits_per_byte(size):.4f}"
        columns.append((name, f"{found.parameters:,}", f"{found.targets:,}", *figures))
    widths = [max(map(len, column)) for column in columns]
    for first, *rest in zip(*columns):
        print("  ".join([first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(rest, widths[1:]))]))
    for (name, *_), found in zip(columns[1:], (own, other)):
        _note_unknown(found.unknown, name)


def _note_unknown(count: int, where: str) -> None:
    if count:
        print(f"note: {count:,} tokens of {where} stand for text that the model cannot tell apart: flattering bits")
