"""What a framework writes into a run folder, in miniature."""

import contextlib
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lmcore.config import Config, ModelConfig, TrainConfig

CONFIG = Config(model=ModelConfig(vocab_size=300), train=TrainConfig(steps=100, resume="auto"))


def write(folder: Path) -> Callable[[], None]:
    """A framework's part, in miniature: copies now, writes later."""

    def finish() -> None:
        folder.mkdir()
        (folder / "weights").write_text("whole")

    return finish


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """A disk that is full: no file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Member:
    """One of several processes, in a test that plays them one after the other: it hears what process 0 said last."""

    said = ""

    def __init__(self, rank: int, count: int):
        self.rank, self.count = rank, count

    def sum(self, values: Sequence[float]) -> list[float]:
        return [value * self.count for value in values]

    def largest(self, value: int) -> int:
        return value

    def broadcast(self, text: str) -> str:
        if self.rank == 0:
            Member.said = text
        return Member.said
