"""Collectives in the text of a compiled XLA program: how many bytes each kind moves in one step.

Those inside a loop (over layers, micro-batches or chunks of the loss) count once for each of its iterations. Several
arrays that share one collective have a tuple for a shape, and all of them count.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Collective", "collectives", "wire_bytes"]

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
INSTRUCTION = re.compile(
    rf"^\s+(?:ROOT )?%?[\w.\-]+ = (?P<shape>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<rest>.*)"
)
COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
ENTRY = "ENTRY"
CALLED = re.compile(r"(?:calls|body|to_apply|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
LOOP = re.compile(r" while\(.*condition=%(?P<condition>[\w.\-]+), body=%(?P<body>[\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
ARRAY = re.compile(r"\b(pred|[a-z]+\d+)[a-z0-9]*\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind within groups of one size."""

    kind: str
    group: int
    """Number of devices that exchange with each other."""
    count: int
    """How often one device takes part in a step."""
    bytes: int
    """Size of the whole arrays, summed over all: what is gathered, reduced or sent."""

    @property
    def wire(self) -> float:
        """Bytes that one device sends in a step, by the ring algorithm."""
        return wire_bytes(self.kind, self.group, self.bytes)


def wire_bytes(kind: str, group: int, size: float) -> float:
    """Return the bytes that each device sends to exchange an array, by the ring algorithm (Thakur et al. 2005).

    Args:
        kind: of collective.
        group: number of devices.
        size: bytes of the whole array.
    """
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (group - 1) / group


def collectives(text: str, devices: int) -> list[Collective]:
    """Return the collectives of a program, by kind and size of group, those among single devices left out.

    Args:
        text: of the compiled program.
        devices: number of all.

    Raises:
        ValueError: a loop with a collective in it has no known number of iterations.
    """
    bodies = _computations(text)
    found: dict[str, tuple[str, int, int, int]] = {}

    def visit(name: str, times: int) -> None:
        for line in bodies[name]:
            if each := INSTRUCTION.match(line):
                channel = re.search(r"channel_id=\d+", line)
                # A TPU's fusions overlap a collective with others' work: each has a copy, with the collective's channel
                key = channel[0] if channel else f"{name} {line}"
                times_before = found[key][-1] if key in found else times
                # and a TPU's reduce-scatter is a fusion of an all-reduce and a slice.
                kind = "reduce-scatter" if "all-reduce-scatter" in name else each["kind"]
                group = _group(each["rest"], devices)
                size = _payload(each["shape"], each["kind"], group, bool(each["start"]))
                found[key] = kind, group, size, min(times, times_before)
            inner = times * _iterations(line, bodies)
            for called in CALLED.findall(line):
                for each_name in re.findall(r"%([\w.\-]+)", called):
                    visit(each_name, inner)

    visit(ENTRY, 1)
    totals: dict[tuple[str, int], tuple[int, int]] = {}
    for kind, group, size, times in found.values():
        if group > 1:
            count, total = totals.get((kind, group), (0, 0))
            totals[kind, group] = count + times, total + size * times
    return [Collective(*key, *totals[key]) for key in sorted(totals)]


def _computations(text: str) -> dict[str, list[str]]:
    """Return the name of each computation -> its lines; that of the program itself is ENTRY."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            lines = bodies[ENTRY if head["entry"] else head["name"]] = []
        else:
            lines.append(line)
    return bodies


def _iterations(line: str, bodies: dict[str, list[str]]) -> int:
    """Return how often an instruction runs what it calls: for a loop that counts from 0, its bound over its step."""
    if not (loop := LOOP.search(line)):
        return 1
    if trips := TRIPS.search(line):
        return int(trips[1])
    condition, body = "\n".join(bodies[loop["condition"]]), "\n".join(bodies[loop["body"]])
    bound = re.search(r"32\[\]\S* constant\((\d+)\)", condition)
    index = re.search(r"get-tuple-element\(.*index=(\d+)", condition)
    if bound and index and "direction=LT" in condition:
        after = re.findall(r"%([\w.\-]+)", body.partition("ROOT ")[2].partition("tuple(")[2].partition(")")[0])
        names = [after[int(index[1])]]  # the counter after one iteration: perhaps a copy of a sum with the step
        for name in names:
            if made := re.search(rf"%{re.escape(name)} = \S+ (add|copy|constant)\((.*?)\)", body):
                if made[1] == "constant":
                    return -(-int(bound[1]) // int(made[2]))
                names += re.findall(r"%([\w.\-]+)", made[2])
    raise ValueError(f"{loop['body']}: the number of iterations of this loop is not known")


def _arrays(shape: str) -> Iterator[int]:
    for dtype, dims in ARRAY.findall(shape):
        bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
        yield math.prod(map(int, dims.split(","))) * bits // 8 if dims else bits // 8


def _payload(shape: str, kind: str, group: int, start: bool) -> int:
    """Return the bytes of the whole arrays: of a gather what comes out, of a reduce-scatter what goes in."""
    size = sum(_arrays(shape))
    if start and kind == "all-gather":  # (inputs, outputs)
        size = size * group // (group + 1)
    if start and kind == "collective-permute":  # (input, output, two words of context)
        size = next(_arrays(shape))
    return size * group if kind == "reduce-scatter" else size


def _group(attributes: str, devices: int) -> int:
    """Return the number of devices in each group."""
    if "source_target_pairs" in attributes:
        return len(re.findall(r"\{\d+,\d+\}", attributes))
    text = attributes.partition("replica_groups=")[2]
    if text.startswith("mesh["):  # mesh['axis_0'=8,'axis_1'=2] {'axis_0'}, or a part of an axis: {'axis_0':(1)4}
        sizes, axes = text[len("mesh[") :].split("]", 1)
        by_name = dict(re.findall(r"'(\w+)'=(\d+)", sizes))
        named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[: axes.index("}")])
        return math.prod(int(part or by_name[name]) for name, part in named)
    if iota := re.match(r"\[(\d+),(\d+)\]<=", text):
        return int(iota[2])
    if listed := re.match(r"\{\{([\d,]*)\}", text):
        return len(listed[1].split(","))
    return devices
