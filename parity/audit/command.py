"""`python -m parity.audit --config FILE`: what a run's programs for CUDA and TPUs are like, without either.

Exit code 0: all checks passed. 1: one failed. 2: a mistake on the command line, or a mesh that the run cannot be split
over.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lmcore import config as configs
from lmcore.config import Config, cli, from_dict
from lmcore.errors import UserError, command
from lmcore.run.mesh import MeshShape, check_mesh, mesh_shape
from parity.audit.checks import Check
from parity.plan.command import with_known_vocabulary

__all__ = ["main"]

TOPOLOGIES = {4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}
"""Number of TPUs -> the slice that has as many."""
Platform = Literal["all", "cuda", "tpu", "torch"]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Audit as the command line says."""
    args = cli.parse_arguments(_parser(), argv)
    values = args.as_dict()
    config = with_known_vocabulary(from_dict(Config, {name: values[name] for name in configs.GROUPS}))
    if args.json is not None and not Path(args.json).absolute().parent.is_dir():
        raise UserError(f"--json: {args.json!r} is in no folder that exists; make it first")
    if args.devices < 1:
        raise UserError(f"--devices: found {args.devices}, expected at least 1")
    mesh = mesh_shape(config.parallel, args.devices)
    check_mesh(config, mesh)
    from parity.audit.programs import audited

    config = audited(config, mesh)
    checks: list[Check] = []
    print(f"{config.train.precision}, T = {config.train.seq_len}, {mesh.size} devices\n{_HEAD}")
    for check in _checks(config, mesh, args.platform, args.compile):
        checks.append(check)
        print(_line(check), flush=True)
    failed = sum(not check.passed for check in checks)
    print(f"\n{len(checks) - failed} of {len(checks)} checks passed")
    if args.json is not None:
        found = {"length": config.train.seq_len, "mesh": asdict(mesh), "checks": [asdict(each) for each in checks]}
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _checks(config: Config, mesh: MeshShape, platform: Platform, compiled: bool) -> Iterator[Check]:
    from parity.audit.worker import audit_jax
    from parity.plan.worker import has_libtpu

    if platform in ("all", "cuda"):
        yield from audit_jax(config, mesh, "cuda")
    if platform in ("all", "tpu"):
        slices = [name for count, name in TOPOLOGIES.items() if count >= mesh.size]
        topology = slices[0] if compiled and slices and has_libtpu() else None
        yield from audit_jax(config, mesh, "tpu", topology)
        if topology is None:
            why = "libtpu is not installed (pip install 'twinlm[plan]')" if not has_libtpu() else "--compile, --devices"
            print(f"note: not compiled for TPUs: {why}")
    if platform in ("all", "torch"):
        from parity.audit.eager import audit_torch

        yield from audit_torch(config, compiled)


_HEAD = f"{'':5}{'platform':10}{'step':8}{'program':22}{'check':18}found"


def _line(check: Check) -> str:
    mark = "ok" if check.passed else "FAIL"
    return f"{mark:5}{check.platform:10}{check.step:8}{check.form:22}{check.name:18}{check.found}"


def _parser() -> Any:
    parser = cli.command_parser(
        "python -m parity.audit",
        "Check the programs that a run would have on CUDA and TPUs, lowered and compiled without the devices.",
        "--config FILE [--devices N] [--platform PLATFORM] [--json FILE] [--FIELD VALUE ...]",
    )
    cli.add_config(parser)
    parser.add_argument("--devices", type=int, default=1, help="Number of devices, split as parallel.* says.")
    parser.add_argument("--platform", type=Platform, default="all", help="cuda or tpu for jaxlm, torch for torchlm.")
    parser.add_argument(
        "--compile", type=bool, default=True, help="Compile too: torch's loss, and for TPUs where libtpu is."
    )
    parser.add_argument("--json", type=str | None, help="Write all checks to this file.")
    parser.add_argument("--run_dir", type=str | None, help="Not used: an audit writes no run.")
    for name, group in configs.GROUPS.items():
        parser.add_class_arguments(group, name)
    return parser
