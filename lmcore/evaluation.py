"""`python -m jaxlm.evaluate RUN`, and its twin: loss, perplexity and bits per byte of a trained model on a text."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmcore import cli
from lmcore.config import Config, DataConfig, Precision, from_dict

__all__ = ["main"]


def main(argv: Sequence[str] | None, package: str, make_engine: Callable) -> None:
    """Evaluate the model that the command line names and print a table.

    Raises:
        UserError: there is no such run, or its text cannot be had.
    """
    parser = cli.command_parser(
        f"python -m {package}.evaluate",
        "Measure a trained model: loss, perplexity and bits per byte, on the run's validation text or on other text.",
        "RUN [--data.files FILE ...]",
    )
    parser.add_argument("run", help="A run folder, for its best checkpoint, or one checkpoint.")
    parser.add_argument("--windows", type=int, default=0, help="Sequences to evaluate, evenly spread; 0 takes all.")
    parser.add_argument("--batch_size", type=int, default=0, help="Sequences at a time; 0 takes the run's.")
    parser.add_argument("--precision", type=Precision | None, help="Type of the matrix products; null takes the run's.")
    parser.add_class_arguments(DataConfig, "data")
    args = cli.parse_arguments(parser, argv)

    from lmcore.checkpoints import find_checkpoint, load_run
    from lmcore.trainer import evaluate

    checkpoint = find_checkpoint(Path(args.run))
    config, tokenizer = load_run(checkpoint)
    train = replace(config.train, precision=args.precision or config.train.precision)
    sizes = replace(config.eval, windows=args.windows, batch_size=args.batch_size or config.eval.batch_size)
    config = replace(config, train=train, eval=sizes)
    data = from_dict(DataConfig, args.data.as_dict())
    tokens, source = _tokens(config, data, tokenizer)
    engine = make_engine(config)
    engine.restore(checkpoint.state, optimizer=False)
    begin = time.monotonic()
    row = evaluate(engine, tokens, config, config.eval.windows)
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


def _tokens(config: Config, data: DataConfig, tokenizer: "Tokenizer") -> tuple["Tokens", str]:
    """The text to evaluate, as the run's tokenizer reads it: all of what `data` names, or what the run held out."""
    from lmcore.corpus import open_corpora, open_text
    from lmcore.errors import UserError
    from lmcore.prepare import encode, prepare
    from lmcore.tokens import Tokens

    if not data.files and data.dataset is None:
        prepared = prepare(config)
        if prepared.tokenizer.digest() != tokenizer.digest():
            raise UserError("the run's training text has changed since; name a text to evaluate with --data.files")
        return prepared.valid, open_corpora(config.data)[1].describe()
    corpus = open_text(data)
    parts = list(encode(tokenizer, corpus))
    ids = np.concatenate([ids for ids, _, _ in parts])
    unknown = 0 if tokenizer.unk_id is None else int(np.count_nonzero(ids == tokenizer.unk_id))
    documents, size = sum(part[1] for part in parts), sum(part[2] for part in parts)
    if len(ids) < 2:
        raise UserError(f"data: found {len(ids)} tokens in {corpus.describe()}, expected at least 2")
    return Tokens(ids=ids, documents=documents, bytes=size, unknown=unknown), corpus.describe()
