"""What a plan says, as text for a terminal and as plain values for JSON."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lmcore.model.flops import peak_flops
from parity.plan.hardware import Target
from parity.plan.hlo import Collective
from parity.plan.meshes import HEADROOM, Estimate
from parity.plan.timing import EFFICIENCY
from parity.plan.traffic import Exchange
from parity.plan.worker import Compiled

__all__ = ["Plan", "sums"]

Sums = dict[tuple[str, int], float]


@dataclass(frozen=True)
class Plan:
    """One config on some devices."""

    title: str
    target: Target
    found: Estimate
    as_on_cpu: list[Exchange]
    """The exchanges of the same step by the formula, as XLA compiles it for CPUs."""
    compiled: list[Compiled]
    remedies: list[tuple[str, Estimate]]
    best: list[Estimate]
    notes: list[str]

    @property
    def fits(self) -> bool:
        """Whether the memory of a device suffices: by the target's own compiler if it was asked, else by estimate."""
        own = next((each for each in self.compiled if each.compiler != "cpu"), None)
        return not own.error if own else self.found.fits

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "title": self.title,
            "target": asdict(self.target),
            "fits": self.fits,
            "mesh": _estimate(self.found),
            "compiled": [asdict(each) for each in self.compiled],
            "remedies": [{"change": change, **_estimate(each)} for change, each in self.remedies],
            "best": [_estimate(each) for each in self.best],
            "notes": self.notes,
        }

    def __str__(self) -> str:
        parts = [self.title, *self._memory(), *self._traffic(), *self._time(), *self._remedies(), *self._best()]
        return "\n".join([*parts, *(f"note: {note}" for note in self.notes)])

    def _memory(self) -> Iterator[str]:
        memory, capacity = self.found.memory, self.target.hardware.memory
        yield "\nmemory of each device, GB"
        rows = {
            "parameters, exact": memory.parameters,
            "optimizer state, exact": memory.optimizer,
            "gradients, estimate": memory.gradients,
            "activations for the backward pass, estimate": memory.activations,
            "working memory of the largest part, estimate": memory.working,
        }
        yield from (f"  {name:46}{size / 1e9:10.3f}" for name, size in rows.items())
        verdict = "fits" if self.found.fits else "does not fit"
        room = f"of {capacity / 1e9:.1f}, {HEADROOM:.0%} to be left free"
        yield f"  {'total':46}{memory.total / 1e9:10.3f} {room}: {verdict}"
        for each in self.compiled:
            yield f"  compiled for {each.compiler} in {each.seconds:.0f} s: {_verdict(each)}"

    def _traffic(self) -> Iterator[str]:
        yield "\nexchanged in a step: GB of whole arrays, over all collectives"
        yield f"  {'':28}{'group':>6}{'formula':>12}{'its wire':>12}"
        for each in self.found.exchanges:
            name = f"{each.kind} ({each.axis})"
            yield f"  {name:28}{each.group:6}{each.bytes / 1e9:12.4f}{each.wire / 1e9:12.4f}"
        for program in self.compiled:
            if program.error:
                continue
            counted = sums(program.collectives)
            formula = sums(self.as_on_cpu if program.compiler == "cpu" else self.found.exchanges)
            yield f"  counted in the program for {program.compiler}:"
            yield f"  {'':28}{'group':>6}{'counted':>12}{'formula':>12}"
            for kind, group in sorted(counted.keys() | formula.keys()):
                sizes = (side.get((kind, group), 0) / 1e9 for side in (counted, formula))
                yield f"  {kind:28}{group:6}{''.join(f'{size:12.4f}' for size in sizes)}"

    def _time(self) -> Iterator[str]:
        timing, hardware = self.found.timing, self.target.hardware
        peak = "peak" if peak_flops(hardware.name) else "the matmul rate measured here"
        tokens = self.found.config.train.batch_size * self.found.config.train.seq_len / timing.step
        yield f"\nexpected step: {timing.step:.3g} s, {tokens:,.0f} tokens/s, MFU {timing.mfu:.1%}"
        yield "  = max(matmuls + tensor, sharding) + update = " + (
            f"max({timing.matmuls:.3g} + {timing.tensor:.3g}, {timing.sharding:.3g}) + {timing.update:.3g}"
        )
        again = " × 4/3 for remat" if self.found.config.train.remat else ""
        rate = f"{peak}, {hardware.peak / 1e12:.4g} TFLOP/s a device"
        yield f"  matmuls: model FLOPs{again} at {EFFICIENCY:.0%} of {rate}"

    def _remedies(self) -> Iterator[str]:
        if self.found.fits:
            return
        yield "\nwhat would make it fit:"
        for change, each in self.remedies:
            yield f"  {change}: {each.memory.total / 1e9:.1f} GB, {each.timing.step:.3g} s a step"
        if not self.remedies:
            yield "  neither remat, accumulation, sequence nor another mesh; a smaller batch, or larger devices, might"

    def _best(self) -> Iterator[str]:
        if not self.best:
            return
        yield f"\nfastest meshes that fit\n  {'step, s':>8}{'MFU':>8}{'GB':>8}"
        for each in self.best:
            timing = each.timing
            yield f"  {timing.step:8.3g}{timing.mfu:8.1%}{each.memory.total / 1e9:8.1f}  {each.options}"


def _estimate(found: Estimate) -> dict[str, Any]:
    memory, timing = found.memory, found.timing
    return {
        "options": found.options,
        "fits": found.fits,
        "memory": asdict(memory) | {"state": memory.state, "total": memory.total},
        "exchanges": [asdict(each) | {"wire": each.wire} for each in found.exchanges],
        "timing": asdict(timing) | {"step": timing.step},
    }


def sums(found: Iterable[Collective | Exchange]) -> Sums:
    """Return (kind, group) -> bytes, where reductions are one kind: XLA for CPUs has no reduce-scatter."""
    totals: Sums = defaultdict(float)
    for each in found:
        kind = "all-reduce, reduce-scatter" if each.kind in ("all-reduce", "reduce-scatter") else each.kind
        totals[kind, each.group] += each.bytes
    return totals


def _verdict(found: Compiled) -> str:
    if found.error:
        return f"refused: {found.error}"
    sizes = f"state {found.state / 1e9:.3f}, temporaries {found.temporaries / 1e9:.3f}"
    if found.compiler == "cpu":
        return f"{sizes} (of temporaries, a CPU's program says little about an accelerator's)"
    return f"{sizes}, at most {found.peak / 1e9:.3f} at a time"
