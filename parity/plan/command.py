"""`python -m parity.plan --config FILE --devices N`: what a run would need, before any device is there.

Exit code 0: it fits. 1: it does not. 2: a mistake on the command line, or a mesh that the run cannot be split over.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmcore import config as configs
from lmcore.config import Config, cli, from_dict
from lmcore.errors import UserError, command
from lmcore.run.mesh import AXES, MeshShape, check_mesh, mesh_shape
from lmcore.run.opening import with_vocabulary

__all__ = ["main", "with_known_vocabulary"]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Plan as the command line says."""
    args = cli.parse_arguments(_parser(), argv)
    values = args.as_dict()
    config = with_known_vocabulary(from_dict(Config, {name: values[name] for name in configs.GROUPS}))
    if args.json is not None and not Path(args.json).absolute().parent.is_dir():
        raise UserError(f"--json: {args.json!r} is in no folder that exists; make it first")
    from parity.plan.hardware import read_target
    from parity.plan.meshes import best, estimate, remedies
    from parity.plan.report import Plan
    from parity.plan.shapes import shapes_of
    from parity.plan.traffic import exchanges
    from parity.plan.worker import compile_step, has_libtpu

    target = read_target(args.target, args.devices)
    mesh = mesh_shape(config.parallel, args.devices)
    shapes = shapes_of(config)
    fastest = best(config, shapes, target, args.meshes)
    try:
        check_mesh(config, mesh)
    except UserError as error:
        hint = f"; {fastest[0].options} would fit" if fastest else ""
        raise UserError(f"{error}{hint}") from None
    found = estimate(config, shapes, mesh, target)
    compiled, notes = [], ["torchlm has the same state and formula; its temporaries are estimated alone"]
    if args.compile:
        compiled.append(compile_step(config, mesh))
        if target.topology and has_libtpu():
            compiled.append(compile_step(config, mesh, f"{target.kind.removeprefix('tpu:')}:{target.topology}"))
        elif target.platform == "tpu":
            wanted = (
                "libtpu is not installed (pip install 'twinlm[plan]')" if target.topology else "no topology is given"
            )
            notes.append(f"not compiled for the TPU: {wanted}")
    plan = Plan(
        _title(args.config, config, mesh, target.hardware.name, shapes),
        target,
        found,
        exchanges(config, shapes, mesh, compiled_for_cpu=True),
        compiled,
        [] if found.fits else list(remedies(found, shapes, target)),
        fastest,
        notes,
    )
    print(plan)
    if args.json is not None:
        Path(args.json).write_text(json.dumps(plan.to_dict(), indent=1) + "\n", encoding="utf-8")
    return 0 if plan.fits else 1


def _parser() -> Any:
    parser = cli.command_parser(
        "python -m parity.plan",
        "Say what fits on which devices, what they exchange and how fast a step is, without the devices.",
        "--config FILE --devices N [--target TARGET] [--json FILE] [--FIELD VALUE ...]",
    )
    cli.add_config(parser)
    parser.add_argument("--devices", type=int, default=1, help="Number of devices, over all hosts.")
    parser.add_argument(
        "--target", type=str, default="cpu", help="cpu, cuda:h100 and its like, or tpu:v5e, perhaps with :16x16."
    )
    parser.add_argument("--compile", type=bool, default=True, help="Compile the step too; false: by arithmetic alone.")
    parser.add_argument("--meshes", type=int, default=5, help="Number of fastest meshes to show.")
    parser.add_argument("--json", type=str | None, help="Write all figures to this file.")
    parser.add_argument("--run_dir", type=str | None, help="Not used: a plan writes no run.")
    for name, group in configs.GROUPS.items():
        parser.add_class_arguments(group, name)
    return parser


def with_known_vocabulary(config: Config) -> Config:
    """Return the config with `model.vocab_size` set, as far as it is known before there is a text."""
    tokenizer = config.tokenizer
    known = {"bpe": tokenizer.vocab_size, "bytes": 257 + len(tokenizer.special_tokens)}.get(tokenizer.kind)
    if known is None and not config.model.vocab_size:
        expected = f"a number, since that of tokenizer.kind {tokenizer.kind!r} is not known before the text is read"
        raise UserError(f"model.vocab_size: found 0, expected {expected}")
    if config.train.precision == "float16":
        config = replace(config, train=replace(config.train, precision="bfloat16"))  # as many bytes, and jaxlm has it
    return with_vocabulary(config, known or config.model.vocab_size)


def _title(files: list[str], config: Config, mesh: MeshShape, device: str, shapes: Any) -> str:
    name = Path(files[-1]).stem if files else "quickstart"
    count = sum(leaf.size for leaf in shapes.params.values())
    train, axes = config.train, " × ".join(f"{axis} {getattr(mesh, axis)}" for axis in AXES)
    parts = f" in {train.grad_accum} parts" if train.grad_accum > 1 else ""
    batch = f"{train.batch_size} × {train.seq_len:,} tokens a step{parts}"
    return f"{name}: {count:,} parameters, {batch}, {train.precision}; {mesh.size} × {device}: {axes}"
