"""The rung above the others: runs on meshes against the run of one device, and one twin's mesh against the other's.

Another order of sums rounds otherwise, and training amplifies what was rounded. How much, the same run shows on one
device from weights moved by one ulp: a mesh may differ by no more than `RESPONSES` times the largest of `DRAWS` such
runs, or by the tolerance of an update.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmcore.config import Config, ParallelConfig, Precision
from lmcore.errors import UserError
from lmcore.run.mesh import AXES, MeshShape, check_mesh
from parity.arrays import moved_by_one_ulp
from parity.backends import BACKENDS
from parity.backends.base import CANONICAL, MAX_BATCH, check_config
from parity.check.known import DRAWS, RESPONSES
from parity.check.mesh.jobs import STEPS, Job, Outcome, Request, launch
from parity.check.result import MESH_RUNG, Result, identical
from parity.check.rungs.freerun import whole_schedule
from parity.check.subject import Subject
from parity.convert.states import State, read_state, write_state
from parity.difference import Difference, compare_all, tolerance, worst

__all__ = ["Side", "Topology", "climb_meshes", "mesh_config", "topology"]


@dataclass(frozen=True)
class Topology:
    """A mesh, and the number of processes that share it in jax; in torch each device is a process."""

    mesh: MeshShape
    sequence: bool = False
    processes: int = 1

    def __str__(self) -> str:
        return f"{self.mesh}{', sequence' if self.sequence else ''}"

    @property
    def parallel(self) -> ParallelConfig:
        """The config that asks for this mesh."""
        sizes = {name: getattr(self.mesh, name) for name in AXES}
        return ParallelConfig(**sizes, sequence=self.sequence)


def topology(text: str, processes: int = 1) -> Topology:
    """Return the mesh of a command line: sizes of data, fsdp and tensor, and perhaps `sequence`, such as 1,2,2.

    Args:
        text: of the command line.
        processes: that share the mesh in jax.

    Raises:
        UserError: it is no mesh, or the processes cannot share it evenly.
    """
    words = text.split(",")
    if sequence := words[3:] == ["sequence"]:
        words.pop()
    if len(words) != 3 or not all(word.isdecimal() and int(word) > 0 for word in words):
        expected = "sizes of data, fsdp and tensor, such as 1,2,2 or 1,1,2,sequence"
        raise UserError(f"--mesh: found {text!r}, expected {expected}")
    mesh = MeshShape(*map(int, words))
    if mesh.size % processes:
        expected = f"a divisor of the {mesh.size} devices of --mesh {text}"
        raise UserError(f"--processes: found {processes}, expected {expected}")
    return Topology(mesh, sequence, processes)


def climb_meshes(
    subject: Subject,
    topologies: Sequence[Topology],
    dtypes: Sequence[Precision],
    frameworks: Sequence[str] = ("jax", "torch"),
) -> Iterator[Result]:
    """Compare runs on meshes with the run of one device; yield each line of the table as it is known.

    Args:
        subject: the model and its text; always its initial weights.
        topologies: the meshes.
        dtypes: precisions to check in.
        frameworks: to check; two are also compared with each other.

    Raises:
        UserError: the model cannot be split over a mesh.
    """
    configs = [mesh_config(subject.config, topologies, dtype) for dtype in dtypes]
    for config in configs:
        for one in topologies:
            check_mesh(replace(config, parallel=one.parallel), one.mesh)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(frameworks)) as threads:
        sides = [Side(name, Path(folder) / name, subject.tokens, configs, topologies) for name in frameworks]
        begin = time.perf_counter()
        for done in [threads.submit(side.run) for side in sides]:
            done.result()
        seconds = time.perf_counter() - begin
        for config in configs:
            for one in topologies:
                for side in sides:
                    for line in side.compare(config, one):
                        yield replace(line, seconds=seconds)
                        seconds = 0.0
                if len(sides) == 2 and config.train.precision == "float64":
                    yield sides[0].against(sides[1], config, one)


def mesh_config(config: Config, topologies: Sequence[Topology], dtype: Precision) -> Config:
    """Return the config of all runs in one precision, whose batch all meshes can split."""
    small = check_config(config, dtype)
    parts = math.lcm(*(one.mesh.batch for one in topologies))
    sequences = small.train.grad_accum * parts
    train = replace(small.train, batch_size=sequences * max(1, MAX_BATCH // sequences), cpu_devices=0)
    schedule = whole_schedule(replace(small, train=train, eval=replace(small.eval, batch_size=0)), STEPS)
    return replace(schedule, parallel=ParallelConfig(data=1))


class Side:
    """The runs of one twin."""

    def __init__(
        self,
        framework: str,
        folder: Path,
        text: np.ndarray,
        configs: Sequence[Config],
        topologies: Sequence[Topology],
    ):
        """Set up without running anything.

        Args:
            framework: name of the twin.
            folder: where its runs go.
            text: token ids.
            configs: one for each precision.
            topologies: the meshes.
        """
        self.framework, self.folder, self.text = framework, folder, text
        self.label, self.package = BACKENDS[framework].label, BACKENDS[framework].package
        self.configs, self.topologies = configs, topologies

    def run(self) -> None:
        """Do all runs: on one device, on each mesh, and on one device again from what those before have saved."""
        self._launch([self._job(config, "one") for config in self.configs], 1)
        for one in self.topologies:
            self.on_mesh(one)
        jobs = []
        for config in self.configs:
            for draw in range(DRAWS):
                self._move(config, draw)
                jobs.append(self._job(config, f"moved{draw}", restore=self._moved(config, draw), start=0))
        for number in range(len(self.topologies)):
            jobs += [self._job(config, f"off{number}", None, f"mesh{number}") for config in self.configs[:1]]
        self._launch(jobs, 1)

    def on_mesh(self, one: Topology, fault: str | None = None) -> None:
        """Do the runs on a mesh: from the start, and from a state of the run on one device.

        Args:
            one: the mesh.
            fault: name of a fault to plant; None for none.
        """
        number = self.topologies.index(one)
        jobs = [self._job(config, f"mesh{number}", one) for config in self.configs]
        jobs += [self._job(config, f"onto{number}", one, "one") for config in self.configs[:1]]
        for job in jobs:
            shutil.rmtree(job.folder, ignore_errors=True)
        self._launch(jobs, one.processes if self.framework == "jax" else one.mesh.size, fault)

    def compare(self, config: Config, one: Topology) -> Iterator[Result]:
        """Compare a mesh with one device."""
        number = self.topologies.index(one)
        alone, mesh = self._outcome(config, "one"), self._outcome(config, f"mesh{number}")
        moved = [self._outcome(config, f"moved{draw}") for draw in range(DRAWS)]
        name, dtype = f"{self.label}, {one}", config.train.precision
        yield _same_bits(f"{name}: initial state", dtype, _state(alone, 0, config), _state(mesh, 0, config))
        for step, what in ((1, "state after one update"), (STEPS, f"state after {STEPS}")):
            reference = _state(alone, step, config)
            drifts = [compare_all(reference, _state(other, step, config)) for other in moved]
            yield _within_drift(f"{name}: {what}", dtype, compare_all(reference, _state(mesh, step, config)), drifts)
        drifts = [compare_all(alone.metrics(), other.metrics()) for other in moved]
        what = f"{name}: losses, gradient norms"
        yield _within_drift(what, dtype, compare_all(alone.metrics(), mesh.metrics()), drifts)
        if config is not self.configs[0]:
            return
        for label, source, restored in (("from one device", alone, "onto"), ("restored on one device", mesh, "off")):
            other = self._outcome(config, f"{restored}{number}")
            yield _same_bits(f"{name}: {label}", dtype, _state(source, 1, config), _state(other, 1, config))
            rest = {n: v if n == "valid_loss" else v[1:] for n, v in source.metrics().items()}
            yield _within_drift(f"{name}: {label}, to the end", dtype, compare_all(rest, other.metrics()), drifts)

    def against(self, other: "Side", config: Config, one: Topology) -> Result:
        """Compare this twin's mesh with the other twin's."""
        name = f"mesh{self.topologies.index(one)}"
        ours, theirs = self._outcome(config, name), other._outcome(config, name)
        differences = compare_all(ours.metrics(), theirs.metrics())
        differences += compare_all(_state(ours, STEPS, config), _state(theirs, STEPS, config))
        drifts = []
        for draw in range(DRAWS):
            alone, moved = self._outcome(config, "one"), self._outcome(config, f"moved{draw}")
            drift = compare_all(alone.metrics(), moved.metrics())
            drifts.append(drift + compare_all(_state(alone, STEPS, config), _state(moved, STEPS, config)))
        what = f"{self.label} against {other.label}, {one}"
        return _within_drift(what, config.train.precision, differences, drifts)

    def _job(
        self,
        config: Config,
        name: str,
        one: Topology | None = None,
        source: str = "",
        restore: Path | None = None,
        start: int = 1,
    ) -> Job:
        """Return a run; `source` is the name of one whose state after one step it starts from."""
        if source:
            restore = self._outcome(config, source).checkpoint(1).state
        return Job(
            config=config if one is None else replace(config, parallel=one.parallel),
            folder=self._outcome(config, name).folder,
            restore=restore,
            start=0 if restore is None else start,
        )

    def _outcome(self, config: Config, name: str) -> Outcome:
        return Outcome(self.framework, self.folder / config.train.precision / name)

    def _launch(self, jobs: Sequence[Job], processes: int, fault: str | None = None) -> None:
        launch(Request(package=self.package, jobs=jobs, text=self.text, fault=fault), processes)

    def _moved(self, config: Config, draw: int) -> Path:
        return self.folder / config.train.precision / f"start{draw}"

    def _move(self, config: Config, draw: int) -> None:
        """Write the initial state with its weights moved by one ulp."""
        first = read_state(self._outcome(config, "one").checkpoint(0), config)
        moved = moved_by_one_ulp(dict(first.params), draw, config.train.precision)
        write_state(self._moved(config, draw), State(first.side, 0, moved, first.moments), config)()


def _state(outcome: Outcome, step: int, config: Config) -> dict[str, np.ndarray]:
    """Return the parameters and moments of a saved state, in canonical names."""
    state = read_state(outcome.checkpoint(step), config).to(CANONICAL, config)
    assert state.moments is not None
    moments = {f"{kind} of {name}": a for kind, arrays in state.moments.arrays.items() for name, a in arrays.items()}
    return {**state.params, **moments} | {"count of updates": np.array(float(state.moments.count))}


def _same_bits(what: str, dtype: str, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> Result:
    differences = [identical(name, values, other[name]) for name, values in one.items()]
    return _line(what, dtype, differences, [0.0] * len(differences), "identical")


def _within_drift(
    what: str, dtype: str, differences: Sequence[Difference], drifts: Sequence[Sequence[Difference]]
) -> Result:
    """Return a line: each difference may be as large as the tolerance of an update, or a multiple of the drift."""
    drift = {d.name: 0.0 for d in differences}
    for draw in drifts:
        for d in draw:
            drift[d.name] = max(drift.get(d.name, 0.0), d.max_rel)
    least = tolerance("update", dtype) or 0.0
    allowed = [max(least, RESPONSES * drift[d.name]) for d in differences]
    return _line(what, dtype, differences, allowed, f"{least:.0e} or {RESPONSES:g} × drift")


def _line(what: str, dtype: str, differences: Sequence[Difference], allowed: Sequence[float], limit: str) -> Result:
    beyond = next((d for d, most in zip(differences, allowed, strict=True) if not d.within(most)), None)
    largest = worst(differences)
    return Result(
        rung=MESH_RUNG,
        what=what,
        dtype=dtype,
        verdict="pass" if beyond is None else "FAIL",
        max_abs=largest.max_abs,
        max_rel=largest.max_rel,
        where=(beyond or largest).place,
        first="" if beyond is None else beyond.name,
        limit=limit,
        note="" if beyond is None else f"first divergent: {beyond.name}",
        differences=tuple(differences),
    )
