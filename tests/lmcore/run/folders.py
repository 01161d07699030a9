"""What a framework writes into a run folder, in miniature."""

import contextlib
import resource
from collections.abc import Callable, Iterator
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
