"""`python -m parity.bench`: time the twins, and other packages' Llamas, on this machine.

Exit code 0: measured. 1: the implementations do not compute the same, so nothing was timed. 2: a mistake on the
command line.
Without arguments: training and generation of a small Llama in float32 and bfloat16.
"""

import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from lmcore import config as configs
from lmcore.config import Config, Precision, cli, from_dict
from lmcore.errors import UserError, command
from lmcore.files import check_folder

if TYPE_CHECKING:
    from parity.bench.report import Measure, Report
    from parity.bench.rounds import Options

__all__ = ["SHAPES", "main"]


@dataclass(frozen=True)
class Shape:
    """A model worth measuring, and a batch for it."""

    fields: dict[str, Any]
    """Dotted names of a config's fields -> values."""
    generate_vocab: int = 0
    """Vocabulary to generate with; 0 is that of training."""


SHAPES = {
    "15m": Shape(
        {
            "model.dim": 288,
            "model.n_layers": 6,
            "model.n_heads": 6,
            "model.ffn_dim": 768,
            "model.vocab_size": 4096,
            "model.max_seq_len": 256,
            "train.batch_size": 16,
        },
        generate_vocab=32000,
    ),
    "124m": Shape(
        {
            "model.dim": 768,
            "model.n_layers": 12,
            "model.n_heads": 12,
            "model.ffn_dim": 2048,
            "model.vocab_size": 50304,
            "model.max_seq_len": 1024,
            "train.batch_size": 16,
        }
    ),
    "1b": Shape(
        {
            "model.dim": 2048,
            "model.n_layers": 16,
            "model.n_heads": 32,
            "model.n_kv_heads": 8,
            "model.ffn_dim": 8192,
            "model.vocab_size": 50304,
            "model.max_seq_len": 2048,
            "train.batch_size": 8,
        }
    ),
}
"""Name -> shape: llama2.c's stories15M (its own vocabulary to generate, a small one to train), GPT-2 small's widths,
and about Llama 3.2 1B's with a smaller vocabulary."""

MODES = ("train", "generate", "serve", "prepare", "startup")
COMPUTING = ("train", "generate", "serve")
"""Modes of a model in some dtype."""
TWINS = ("jaxlm", "torchlm", "torchlm-compiled")
INT8 = ("jaxlm-int8", "torchlm-int8")
"""Twins with int8 weights, timed where they are named alone."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = cli.parse_arguments(_parser(_shape(words)), words)
    from parity.bench.report import change_table, load, table

    olds = [load(Path(path)) for path in args.compare or []]
    if len(olds) > 2:
        raise UserError(f"--compare: found {len(olds)} files, expected OLD.json, or OLD.json and NEW.json")
    console = _console()
    if len(olds) == 2:
        console.print(change_table(*olds))
        return 0
    plan, out = _plan(args), Path(args.out)
    check_folder("--out", out)
    out.mkdir(parents=True, exist_ok=True)  # now, not after minutes
    report = _empty_report(words, plan)
    try:
        with _busy(console) as say:
            for mode, dtype in plan.parts:
                report = replace(report, measures=report.measures + _measure(mode, dtype, plan, say))
                for group in report.groups():
                    if group[0].key[:2] == (mode, dtype):
                        console.print(table(report, group), "")
    finally:  # what was measured is kept, whatever becomes of a later part
        for path in _save(report, out) if report.measures else ():
            console.print(f"written: {path}", highlight=False, markup=False)
    for old in olds:
        console.print(change_table(old, report))
    return 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A command line that makes sense."""

    config: Config
    generate_vocab: int
    parts: list[tuple[str, str]]
    """Mode and dtype of each part; no dtype where there is no matmul."""
    implementations: list[str]
    peer_versions: dict[str, str]
    """Package of a peer -> version."""
    options: "Options"


def _shape(words: list[str]) -> Shape | None:
    """The shape that gives the defaults; none where a config does."""
    named = [word.partition("=")[0] for word in words]
    if "--config" in named:
        if "--shape" in named:
            raise UserError("--shape: found it beside --config, expected one of them: each gives the whole model")
        return None
    at = named.index("--shape") if "--shape" in named else None
    name = "15m" if at is None else words[at].partition("=")[2] or "".join(words[at + 1 : at + 2])
    return SHAPES[_known("--shape", [name], SHAPES)[0]]


def _parser(shape: Shape | None) -> Any:
    parser = cli.command_parser(
        "python -m parity.bench",
        "Time jaxlm and torchlm in turns: training, generation, the server, preparing text, starting.",
        "[--shape NAME | --config FILE] [--mode MODE ...] [--dtype TYPE ...] [--peers NAME ...] [--compare OLD.json]",
    )
    cli.add_config(parser)
    parser.add_argument("--shape", type=str, default="15m", help=f"Model and batch: {', '.join(SHAPES)}.")
    parser.add_argument("--mode", type=list[str], default=["train", "generate"], help=f"Any of {', '.join(MODES)}.")
    parser.add_argument("--dtype", type=list[str], default=["float32", "bfloat16"], help="Types of matmuls.")
    parser.add_argument(
        "--peers",
        type=list[str],
        default=[],
        help="Also these packages' Llamas: hf (transformers), keras, litgpt, llamacpp (generation).",
    )
    parser.add_argument(
        "--peer_python",
        type=list[str],
        default=[],
        help="PEER=PATH: Python of an environment that has its packages.",
    )
    parser.add_argument(
        "--only",
        type=list[str] | None,
        help="Implementations to time, such as torchlm transformers; jaxlm-int8 and torchlm-int8 decode with int8 "
        "weights; null: all but these two.",
    )
    parser.add_argument("--rounds", type=int, default=5, help="Timed turns of each implementation.")
    parser.add_argument("--turn_steps", type=int, default=0, help="Timed updates a turn; 0: 2 on a CPU, 10 on a GPU.")
    parser.add_argument("--prompts", type=list[str], default=["1", "32"], help="Batch sizes of generation.")
    parser.add_argument("--prompt_tokens", type=int, default=32, help="Length of a prompt.")
    parser.add_argument("--requests", type=int, default=48, help="Requests to the server in a turn of --mode serve.")
    parser.add_argument("--out", type=str, default="runs/bench", help="Folder for the JSON, the plot and the page.")
    parser.add_argument("--compare", type=list[str] | None, help="JSON of an earlier run; of two: no run.")
    parser.add_argument("--run_dir", type=str | None, help="Not used: a benchmark writes no run.")
    for name, group in configs.GROUPS.items():
        parser.add_class_arguments(group, name)
    if shape is not None:
        parser.set_defaults(shape.fields | {"sample.max_tokens": 250, "sample.temperature": 1.0, "optim.lr": 1e-3})
    return parser


def _known(option: str, words: Sequence[str], known: Iterable[str]) -> list[str]:
    for word in words:
        if word not in known:
            raise UserError(f"{option}: found {word!r}, expected {', '.join(known)}")
    return list(dict.fromkeys(words))


def _plan(args: Any) -> Plan:
    """Check what jsonargparse cannot.

    Raises:
        UserError: something cannot be measured.
    """
    from parity.bench.modes import IMPLEMENTATIONS
    from parity.bench.rounds import Options

    if missing := [name for name in ("jax", "torch") if find_spec(name) is None]:
        hint = 'pip install "twinlm[all]"'
        raise UserError(f"parity.bench needs jax and torch, found no {' and no '.join(missing)}; run: {hint}")
    dtypes = _known("--dtype", args.dtype, get_args(Precision))
    modes = _known("--mode", args.mode, MODES)
    implementations, pythons, peer_versions = _peers(args, dtypes)
    for mode in modes:
        if mode != "prepare" and not any(mode in IMPLEMENTATIONS[name] for name in implementations):
            able = ", ".join(name for name in (*TWINS, *INT8, *pythons) if mode in IMPLEMENTATIONS[name])
            raise UserError(f"--only: found {' '.join(args.only)}, expected for --mode {mode} any of {able}")
    for option, found, minimum in (
        ("--rounds", args.rounds, 1),
        ("--turn_steps", args.turn_steps, 0),
        ("--prompt_tokens", args.prompt_tokens, 1),
        ("--requests", args.requests, 1),
    ):
        if found < minimum:
            raise UserError(f"{option}: found {found}, expected at least {minimum}")
    for word in args.prompts:
        if not (word.isdecimal() and int(word)):
            raise UserError(f"--prompts: found {word!r}, expected numbers such as 1 32")
    values = args.as_dict()
    config = from_dict(Config, {name: values[name] for name in configs.GROUPS})
    if pythons and config.optim.name != "adamw":
        raise UserError(f"optim.name: found {config.optim.name!r} with --peers, expected adamw")
    vocab_size = config.model.vocab_size or config.tokenizer.vocab_size
    shape = SHAPES[args.shape]
    own = not args.config and vocab_size == shape.fields["model.vocab_size"]
    return Plan(
        config=replace(config, model=replace(config.model, vocab_size=vocab_size, dropout=0.0)),  # draws differ
        generate_vocab=(own and shape.generate_vocab) or vocab_size,
        parts=[(mode, dtype) for mode in modes for dtype in (dtypes if mode in COMPUTING else [""])],
        implementations=[*implementations, "matmul"],
        peer_versions=peer_versions,
        options=Options(
            rounds=args.rounds,
            turn_steps=args.turn_steps,
            batches=tuple(map(int, args.prompts)),
            prompt_tokens=args.prompt_tokens,
            requests=args.requests,
            pythons=pythons,
            alone=config.train.device != "cpu" and shutil.which("nvidia-smi") is not None,
        ),
    )


def _peers(args: Any, dtypes: Sequence[str]) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Return which implementations to time, the interpreter of each peer's, and the versions of the peers' packages.

    Raises:
        UserError: a peer is unknown or not installed, or lacks a type; or `--only` names what there is not.
    """
    from parity.bench.peers import PEERS, interpreters, peer_versions

    peers = _known("--peers", args.peers, PEERS)
    for dtype in dtypes if peers else []:
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"--dtype: found {dtype!r} with --peers, expected float32 or bfloat16")
    chosen = interpreters(args.peer_python, peers)
    pythons = {name: chosen[peer] for peer in peers for name in PEERS[peer].implementations}
    every = [*TWINS, *INT8, *pythons]
    wanted = [*TWINS, *pythons] if args.only is None else _known("--only", args.only, every)
    versions: dict[str, str] = {}
    for peer in peers:
        if any(name in wanted for name in PEERS[peer].implementations):
            versions |= peer_versions(peer, chosen[peer])
    return [name for name in every if name in wanted], pythons, versions


def _measure(mode: str, dtype: str, plan: Plan, say: Callable[[str], None]) -> "list[Measure]":
    """One part of the plan."""
    from parity.bench import commands as bench_commands
    from parity.bench import modes as bench_modes

    part = " ".join(filter(None, (mode, dtype)))
    options = replace(plan.options, say=lambda line: say(f"{part}: {line}"))
    if mode == "prepare":
        return bench_commands.preparation(plan.config, options)
    if mode == "startup":
        able = [name for name in plan.implementations if mode in bench_modes.IMPLEMENTATIONS[name]]
        return bench_commands.startup(able, options)
    config = replace(plan.config, train=replace(plan.config.train, precision=cast(Precision, dtype)))
    if mode == "train":
        return bench_modes.training(config, plan.implementations, options)
    if mode == "serve":
        from parity.bench.serving import serving

        able = [name for name in plan.implementations if mode in bench_modes.IMPLEMENTATIONS[name]]
        model = replace(config.model, vocab_size=plan.generate_vocab)
        return serving(replace(config, model=model), able, options)
    positions = -(-options.prompt_tokens // 32) * 32 + -(-config.sample.max_tokens // 16) * 16
    context = max(config.model.max_seq_len, 1 << (positions - 1).bit_length())
    model = replace(config.model, vocab_size=plan.generate_vocab, max_seq_len=context)
    return bench_modes.generation(replace(config, model=model), plan.implementations, options)


def _empty_report(words: Sequence[str], plan: Plan) -> "Report":
    """All but the measures."""
    from lmcore.describe import machine, variables, versions
    from parity.bench.report import Report

    model, train, options = plan.config.model, plan.config.train, plan.options
    heads = f"{model.n_heads} query heads, {model.n_kv_heads} key/value heads"
    vocab = f"{model.vocab_size:,} to train, {plan.generate_vocab:,} to generate"
    parts = f"{train.grad_accum} micro-batch{'es' * (train.grad_accum > 1)}"
    settings = {
        "model": f"{model.n_layers} layers of {model.dim}, {heads}, feed-forward {model.ffn_dim}; vocabulary {vocab}",
        "batch": f"{train.batch_size} × {train.seq_len}, in {parts}",
        "turns": f"{options.rounds} rounds, implementations {'one after the other' if options.alone else 'in turns'}",
    }
    return Report(
        command=shlex.join(["python", "-m", "parity.bench", *words]),
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        settings=settings,
        machine=machine(),
        versions=versions() | plan.peer_versions,
        flags=variables(),
        measures=[],
    )


def _save(report: "Report", folder: Path) -> Iterator[Path]:
    """Write the report under its date, as JSON, plot and page."""
    name = folder / report.date[:19].replace(":", "")
    from parity.bench.page import page, plot

    report.save_json(path := name.with_suffix(".json"))
    yield path
    plot(report, path := name.with_suffix(".png"))
    yield path
    (path := name.with_suffix(".html")).write_text(page(report), encoding="utf-8")
    yield path


def _console() -> Any:
    """Standard output: as wide as the terminal, or, in a file, as the table."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=180)


@contextmanager
def _busy(console: Any) -> Iterator[Callable[[str], None]]:
    """A line on a terminal that says what is going on."""
    if not console.is_terminal:
        yield lambda line: None
        return
    with console.status("starting") as status:
        yield lambda line: status.update(line)
