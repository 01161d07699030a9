"""What an audit holds of a program: each check passes or fails, and says what it found."""

from collections.abc import Iterator
from dataclasses import dataclass

from lmcore.config import Config
from lmcore.run.mesh import MeshShape
from parity.audit.facts import Facts, Matmul
from parity.plan.report import sums
from parity.plan.shapes import shapes_of
from parity.plan.traffic import exchanges

__all__ = ["Check", "Program", "factors", "judge", "listed", "no_kernel_reason"]

SHOWN = 3
"""Findings that a line names; of more it says the number."""
MORE = 1.1
"""Collectives may move this much more than the plan's formula says; less is welcome."""
UNPLANNED = 0.01
"""Fraction of the planned bytes that kinds of collectives which the plan leaves out may move."""


@dataclass(frozen=True)
class Check:
    """One line of an audit."""

    platform: str
    step: str
    form: str
    """What was read: what jax lowered, or what the platform's own compiler made of it."""
    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Program:
    """What is known of a program before it is read."""

    platform: str
    step: str
    form: str
    config: Config
    mesh: MeshShape
    donated: int
    """Number of arrays whose memory an output should take."""


def judge(program: Program, facts: Facts) -> list[Check]:
    """Return the checks of one program."""

    def check(name: str, passed: bool, found: str) -> Check:
        return Check(program.platform, program.step, program.form, name, passed, found)

    checks = [
        check("matmul factors", *factors(program.config, facts)),
        check("T × T tensors", not facts.quadratic, listed([*map(str, facts.quadratic)])),
        check("donated buffers", facts.donated >= program.donated, f"{facts.donated} of {program.donated}"),
        check("host callbacks", not facts.callbacks, listed(list(facts.callbacks))),
    ]
    if program.step == "train":
        checks.append(check("attention kernel", *_kernel(program, facts)))
    if program.step == "train" and facts.collectives is not None:
        checks.append(check("collectives", *_collectives(program, facts)))
    return checks


def no_kernel_reason(config: Config, platform: str) -> str:
    """Return why attention has no kernel of the platform's with this config; an empty string where it has.

    Args:
        config: of the run.
        platform: `cuda` or `tpu`.
    """
    model = config.model
    reasons = {
        f"train.precision {config.train.precision}": config.train.precision in ("float32", "float64"),
        "dropout of attention weights": model.has_dropout,
    }
    if platform == "cuda":
        reasons |= {
            "attention_softcap": model.attention_softcap != 0,
            "masked documents": config.data.is_marked,
            f"head_dim {model.head_dim}": model.head_dim % 8 != 0 or model.head_dim > 128,
        }
    else:
        reasons[f"train.seq_len {config.train.seq_len}"] = config.train.seq_len % 128 != 0
    return ", ".join(reason for reason, holds in reasons.items() if holds)


def factors(config: Config, facts: Facts) -> tuple[bool, str]:
    """Return whether all large matmuls but the optimizer's have 16-bit factors where the config asks for them."""
    large = [each for each in facts.large if not each.optimizer]
    count, wide = _count(large), [each for each in large if not each.narrow]
    updates = _count(each for each in facts.large if each.optimizer)
    note = f"; the optimizer's {updates} are float32" if updates else ""
    if config.train.precision in ("float32", "float64"):
        return True, f"{count} large matmuls in {config.train.precision}, as train.precision says{note}"
    kinds = f": {listed([f'{each.count} × ({each})' for each in wide])}" if wide else ""
    return not wide and count > 0, f"{count - _count(wide)} of {count} large matmuls have 16-bit factors{note}{kinds}"


def _kernel(program: Program, facts: Facts) -> tuple[bool, str]:
    found = ", ".join(f"{count} × {kernel}" for kernel, count in sorted(facts.kernels.items()))
    reason = no_kernel_reason(program.config, program.platform)
    return bool(found or reason), found or (f"none, because of {reason}" if reason else "none")


def _collectives(program: Program, facts: Facts) -> tuple[bool, str]:
    planned = sums(exchanges(program.config, shapes_of(program.config), program.mesh))
    counted = sums(facts.collectives or ())
    slack = UNPLANNED * sum(planned.values())
    found, passed = [], True
    for kind, group in sorted(counted.keys() | planned.keys()):
        moved, limit = counted.get((kind, group), 0.0), planned.get((kind, group), 0.0)
        passed &= moved <= MORE * limit + slack
        found.append(f"{kind} of {group}: {moved / 1e6:.3f} MB, {limit / 1e6:.3f} planned")
    return passed, "; ".join(found) or "none, none planned"


def _count(matmuls: Iterator[Matmul] | list[Matmul]) -> int:
    return sum(each.count for each in matmuls)


def listed(found: list[str]) -> str:
    """Return findings as one text, of many the first ones and the number of the others."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more if found else "none"
