"""`python -m parity.check WHAT`: climb the ladder, and name the first difference between the twins, if any.

Exit code 0: the same model. 1: they differ, or the self-test did not catch a fault. 2: a mistake on the command line.
WHAT is a run or a checkpoint of either framework, or a Hugging Face Llama folder; without it, a config's initial
weights are checked.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lmcore import config as configs
from lmcore.config import Config, Precision, cli, from_dict
from lmcore.describe import environment
from lmcore.errors import UserError, command
from lmcore.optim.table import OPTIMIZERS
from parity.backends import BACKENDS, PAIR

if TYPE_CHECKING:
    from parity.backends.base import Device
    from parity.check.mesh.ladder import Topology
    from parity.check.processes import Climbed
    from parity.check.result import Result
    from parity.check.subject import Subject
    from parity.report.report import Report

__all__ = ["check", "main"]

DTYPES: tuple[Precision, ...] = ("float64", "float32")
"""Precisions that are checked by default: float64 tests the logic, and float32 is what people train in."""
STEPS = 20


def check(
    what: Path | str | None = None,
    *,
    config: Config | None = None,
    dtypes: Sequence[Precision] = DTYPES,
    rungs: Sequence[int] | None = None,
    devices: "tuple[Device, Device]" = ("cpu", "cpu"),
    steps: int = STEPS,
    files: Sequence[str] = (),
    report: "Callable[[str, list[Result]], None] | None" = None,
    verify: bool = True,
    apart: bool = False,
    backends: Sequence[str] = tuple(PAIR),
    meshes: "Sequence[Topology]" = (),
    witnesses: Sequence[str] = (),
) -> "Report":
    """Check that jaxlm and torchlm, or two other backends, are the same model.

    Args:
        what: a run, a checkpoint or a Hugging Face folder; None for the initial weights of `config`.
        config: read only without `what`; None for the quickstart.
        dtypes: precisions to check in.
        rungs: numbers of the rungs to climb; None climbs all.
        devices: of both backends, in order, as in `train.device`.
        steps: number of steps of the training trajectory.
        files: text to feed to the model, as for `data.files`.
        report: called with each precision and its lines as soon as they are complete.
        verify: whether to compare a run's files with their checksums.
        apart: check precisions side by side in separate processes, where cores and memory allow it; a script that
            sets this needs `if __name__ == "__main__"`.
        backends: two names in `parity.backends.BACKENDS`, the reference first.
        meshes: compare runs on these meshes with the run of one device instead, in both twins, from initial weights.
        witnesses: names in `parity.check.witnesses.WITNESSES`, to compare on rung 9 beside transformers.

    Returns:
        A report; it is true if nothing differs.

    Raises:
        UserError: `what` cannot be read, or a device cannot do what is asked.
    """
    from parity.check.processes import climb_in_processes, climb_one, processes_for
    from parity.check.rungs.base import Options
    from parity.check.subject import open_subject
    from parity.report.report import Report

    subject = open_subject(None if what is None else Path(what), config or Config(), list(files), verify)
    facts, results, on = _facts(subject), [], dict(zip(backends, devices, strict=True))
    if meshes:
        from parity.check.mesh.ladder import climb_meshes

        lines = list(climb_meshes(subject, meshes, dtypes, backends))
        for dtype in dtypes:
            results += [line for line in lines if line.dtype == dtype]
            if report is not None:
                report(dtype, [line for line in lines if line.dtype == dtype])
        facts["meshes"], dtypes = "; ".join(map(str, meshes)), ()
    options = Options(steps=steps, witnesses=tuple(witnesses))
    at_once = processes_for(subject, dtypes, on) if apart else 1
    for first in range(0, len(dtypes), at_once):
        group = dtypes[first : first + at_once]
        if len(group) == 1:
            climbed: Iterable[Climbed] = [climb_one(subject, group[0], rungs, on, options)]
        else:
            climbed = climb_in_processes(subject, group, rungs, on, options)
        for dtype, (facts["devices"], lines) in zip(group, climbed, strict=True):
            results += lines
            if report is not None:
                report(dtype, lines)
    facts |= environment()
    compared = " against ".join(BACKENDS[name].title for name in backends)
    return Report(subject=subject.what, results=tuple(results), facts=facts, compared=compared)


def _facts(subject: "Subject") -> dict[str, str]:
    model, optim = subject.config.model, subject.config.optim
    heads = f"{model.n_heads} heads of {model.head_dim}, {model.n_kv_heads} of keys and values"
    tied = "tied" if model.tie_embeddings else "untied"
    shape = f"{model.n_layers} layers of {model.dim}, {heads}, feed-forward {model.ffn_dim}"
    facts = {
        "model": f"{shape}, vocabulary {model.vocab_size:,} ({tied}), context {model.max_seq_len}",
        "optimizer": f"{optim.name}, lr {optim.lr:g}, {_memory(optim)}, decay {optim.weight_decay:g}",
        "text": subject.text,
    }
    if model.lora is not None:
        facts["model"] += f", adapters of rank {model.lora.rank} on {', '.join(model.lora.targets)}"
    return facts | ({"dropout": f"{model.dropout:g} in training, the same masks in both"} if model.dropout else {})


def _memory(optim: configs.OptimConfig) -> str:
    """Return the settings of an optimizer's averages."""
    return ", ".join(f"{field} {getattr(optim, field):g}" for field in OPTIMIZERS[optim.name].reads) or "factored"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Check as the command line says."""
    args = cli.parse_arguments(_parser(), argv)
    dtypes, rungs, backends = _dtypes(args.dtype), _rungs(args.rungs), _backends(args.backends)
    devices = _devices(args.device, backends)
    if args.steps < 2:
        raise UserError(f"--steps: found {args.steps}, expected at least 2")
    for option, path in (("--json", args.json), ("--report", args.report)):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise UserError(f"{option}: {path!r} is in no folder that exists; make it first")
        if path is not None and Path(path).is_dir():
            raise UserError(f"{option}: {path!r} is a folder, expected a file to write; name one in it")
    meshes, witnesses = _meshes(args), _witnesses(args, rungs)
    if args.self_test:
        return _mesh_self_test() if meshes else _self_test()
    if args.calibrate:
        return _calibrate()
    files, config = _config(args)
    from parity.report.report import result_table

    console = _console()
    with _busy(console):
        report = check(
            args.what,
            config=config,
            dtypes=dtypes,
            rungs=rungs,
            devices=devices,
            steps=args.steps,
            files=files,
            report=lambda dtype, lines: console.print(result_table(lines, dtype), ""),
            verify=not args.no_verify,
            apart=True,
            backends=backends,
            meshes=meshes,
            witnesses=witnesses,
        )
    console.print(f"{report.subject}: {report.facts['model']}; {report.facts['text']}", highlight=False, markup=False)
    console.print(report.verdict, style="bold green" if report else "bold red", highlight=False, markup=False)
    if args.json is not None:
        report.save_json(Path(args.json))
    if args.report is not None:
        report.save_page(Path(args.report))
        console.print(f"report: {args.report}", highlight=False, markup=False)
    return 0 if report else 1


def _parser() -> Any:
    parser = cli.command_parser(
        "python -m parity.check",
        "Prove that jaxlm and torchlm are the same model, from batches to training, or name the first difference.",
        "[WHAT] [--config FILE] [--dtype TYPE ...] [--rungs N ...] [--report FILE.html]",
    )
    parser.add_argument(
        "what",
        nargs="?",
        type=str | None,
        help="A run, a checkpoint or a Hugging Face folder; null for initial weights of the config.",
    )
    cli.add_config(parser)
    parser.add_argument("--dtype", type=list[str], default=list(DTYPES), help="Any of float64, float32, bfloat16.")
    parser.add_argument("--rungs", type=list[str] | None, help="Rungs to climb, such as 1 2 5-7; null climbs all.")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, mps or auto for both; or JAX/TORCH.")
    parser.add_argument(
        "--backends", type=list[str], default=list(PAIR), help="Two frameworks to compare, the reference first."
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="Steps of the training trajectory on rung 7.")
    parser.add_argument(
        "--mesh",
        type=list[str] | None,
        help="Compare runs on these meshes with the run of one device instead: sizes of data, fsdp and tensor, such as "
        "1,2,2, or 1,1,2,sequence.",
    )
    parser.add_argument("--processes", type=int, default=1, help="Number of processes that share a mesh in jax.")
    parser.add_argument(
        "--witness",
        type=list[str] | None,
        help="Further implementations to compare on rung 9: all, or any of ctranslate2, mlx, onnxruntime-genai, "
        "llama.cpp.",
    )
    parser.add_argument("--json", type=str | None, help="Write all differences to this file.")
    parser.add_argument("--report", type=str | None, help="Write a self-contained web page to this file.")
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="Plant faults in the twins, one after another, and check that each is caught.",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="Count false alarms over 300 healthy pairs, and find the smallest fault that each rung catches (an hour).",
    )
    cli.add_no_verify(parser)
    parser.add_argument("--run_dir", type=str | None, help="Not used: a check writes no run.")
    for name, group in configs.GROUPS.items():
        parser.add_class_arguments(group, name)
    return parser


def _dtypes(words: list[str]) -> list[Precision]:
    known = [precision for precision in get_args(Precision) if precision != "float16"]
    for word in words:
        if word not in known:
            raise UserError(f"--dtype: found {word!r}, expected any of {', '.join(sorted(known))}")
    return [precision for precision in ("float64", "float32", "bfloat16") if precision in words]


def _rungs(words: list[str] | None) -> list[int] | None:
    if words is None:
        return None
    chosen: set[int] = set()
    for word in words:
        first, dash, last = word.partition("-")
        ends = [first, last] if dash else [first, first]
        if not all(end.isdecimal() and 0 <= int(end) <= 11 for end in ends) or int(ends[0]) > int(ends[1]):
            raise UserError(f"--rungs: found {word!r}, expected numbers from 0 to 11, or a range such as 1-6")
        chosen |= set(range(int(ends[0]), int(ends[1]) + 1))
    return sorted(chosen)


def _meshes(args: Any) -> "list[Topology]":
    from parity.check.mesh.ladder import topology

    if args.mesh and args.what is not None:
        raise UserError(f"--mesh: found {args.what} too, expected a config: runs on meshes start from initial weights")
    if args.mesh and args.device != "cpu":
        raise UserError(f"--mesh: found --device {args.device}, expected cpu")
    if args.mesh and args.rungs is not None:
        raise UserError("--mesh: found --rungs too, expected one of them: runs on meshes are a rung by themselves")
    if not args.mesh and args.processes != 1:
        raise UserError(f"--processes: found {args.processes} without --mesh, expected both")
    return [topology(text, args.processes) for text in args.mesh or []]


def _witnesses(args: Any, rungs: list[int] | None) -> tuple[str, ...]:
    from parity.check.witnesses import choose

    if args.witness and (args.mesh or (rungs is not None and 9 not in rungs)):
        other = "--mesh" if args.mesh else "--rungs without 9"
        raise UserError(f"--witness: found {other} too, expected rung 9 to be climbed, which has the witnesses")
    return choose(args.witness or [])


def _backends(words: list[str]) -> list[str]:
    if len(words) != 2 or len(set(words)) != 2 or not set(words) <= BACKENDS.keys():
        raise UserError(f"--backends: found {' '.join(words)!r}, expected two of {', '.join(BACKENDS)}")
    return words


def _devices(word: str, backends: Sequence[str]) -> "tuple[Device, Device]":
    first, slash, second = word.partition("/")
    devices = []
    for backend, device in zip(map(BACKENDS.__getitem__, backends), (first, second if slash else first), strict=True):
        if device == "mps" and not slash and "mps" not in backend.devices:
            device = "cpu"
        if device not in backend.devices:
            both = "/".join(BACKENDS[name].label.upper() for name in backends)
            raise UserError(f"--device: found {word!r}, expected auto, cpu, cuda or mps, or {both} such as cpu/cuda")
        devices.append(device)
    return devices[0], devices[1]


def _config(args: Any) -> tuple[list[str], Config | None]:
    """Return the text files to feed to the model, and the command line's config where it names no model."""
    values = args.as_dict()
    config = from_dict(Config, {name: values[name] for name in configs.GROUPS})
    files = list(config.data.files)
    if args.what is None:
        return files, config
    changed = configs.differences(Config(), replace(config, data=replace(config.data, files=[])))
    if changed or args.config:
        option = next(iter(changed), "--config")
        raise UserError(f"{option}: {args.what} brings its own config; leave it out (only --data.files goes with WHAT)")
    return files, None


def _self_test() -> int:
    from parity.check.selftest.mutants import MUTANTS, self_test

    console = _console()
    missed = 0
    console.print(f"{'fault':28}  {'twin':5}  {'declared':8}  {'caught':6}  where", style="bold", highlight=False)
    with _busy(console):
        for caught in self_test(MUTANTS):
            missed += not caught.ok
            style = None if caught.ok else "bold red"
            rung = "–" if caught.rung is None else str(caught.rung)
            mutant = caught.mutant
            line = f"{mutant.name:28}  {mutant.twin:5}  {mutant.rung:8}  {rung:>6}  {caught.where}"
            console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
    if missed:
        console.print(f"{missed} of {len(MUTANTS)} faults were not caught where they should be.", style="bold red")
        return 1
    console.print(f"All {len(MUTANTS)} faults were caught, each at its rung.", style="bold green")
    return 0


def _mesh_self_test() -> int:
    """Plant faults in runs on meshes; the meshes are the faults' own, whatever the command line names."""
    from parity.check.mesh.selftest import self_test

    console, missed, count = _console(), 0, 0
    console.print(f"{'fault':32}  {'twin':5}  caught", style="bold", highlight=False)
    with _busy(console):
        for caught in self_test():
            missed, count = missed + (not caught.ok), count + (caught.fault is not None)
            where = "nothing" if caught.line is None else f"{caught.line.what}: {caught.line.where}"
            line = f"{caught.name:32}  {caught.framework:5}  {where}"
            style = None if caught.ok else "bold red"
            console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
    if missed:
        console.print(f"{missed} of {count} faults, or meshes without one, were misjudged.", style="bold red")
        return 1
    console.print(f"All {count} faults were caught, and no mesh without one failed.", style="bold green")
    return 0


def _calibrate() -> int:
    """Calibrate, and print two Markdown tables: false alarms and smallest faults."""
    from parity.check.selftest.calibrate import HEALTHY, PRECISIONS, false_alarms, smallest_faults

    failed: dict[tuple[str, str], int] = {}
    pairs: dict[tuple[str, str], int] = {}
    for name, dtype, outcomes in false_alarms():
        pairs[name, dtype] = len(outcomes)
        failed[name, dtype] = sum(bool(outcome.failures) for outcome in outcomes)
        print(f"{name}, {dtype}: {failed[name, dtype]} of {len(outcomes)} failed", file=sys.stderr, flush=True)
        for outcome in outcomes:
            for line in outcome.failures:
                print(f"  seed {outcome.seed}: {line}", file=sys.stderr, flush=True)
    print("| healthy pairs that failed, of all | " + " | ".join(PRECISIONS) + " |\n|---|" + "---|" * len(PRECISIONS))
    for name in HEALTHY:
        print(f"| {name} | " + " | ".join(f"{failed[name, d]} of {pairs[name, d]}" for d in PRECISIONS) + " |")
    totals = [(sum(failed[n, d] for n in HEALTHY), sum(pairs[n, d] for n in HEALTHY)) for d in PRECISIONS]
    print("| all | " + " | ".join(f"{count} of {total}" for count, total in totals) + " |\n", flush=True)
    smallest = smallest_faults(DTYPES)
    print("| times 1 + δ, in torch | rung | " + " | ".join(f"smallest δ, {dtype}" for dtype in smallest) + " |")
    print("|---|---|" + "---|" * len(smallest))
    for name, (rung, _) in smallest[DTYPES[0]].items():
        sizes = [smallest[dtype].get(name, (rung, None))[1] for dtype in smallest]
        print(f"| {name} | {rung} | " + " | ".join("–" if size is None else f"{size:.0e}" for size in sizes) + " |")
    return int(any(count for count, _ in totals))


def _console() -> Any:
    """Return a console on standard output, as wide as the terminal, or as the table where it is a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=180)


@contextmanager
def _busy(console: Any) -> Iterator[None]:
    """Show that the check is running, on a terminal."""
    if not console.is_terminal:
        yield
        return
    with console.status("climbing"):
        yield
