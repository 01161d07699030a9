"""Flipped bits and truncated files: no damage is trained on, evaluated or converted in silence.

Over every file of a run, of its text, of an imported run and of an export, in both twins. Each damage is followed by
the commands that read the file, whose figures and restored state must be those of the undamaged files wherever nothing
is said.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from lmcore.run import trainer
from parity.convert.conversion import main as convert
from tests.tiny import TINY
from tests.torture.outcome import Outcome, Verdict

__all__ = ["Specimen", "faults", "specimens"]

STEPS = 4
OPTIONS = {
    **TINY,
    "run_dir": "run",
    "data.dir": "data",
    "train.steps": STEPS,
    "checkpoint.every": 2,
    "sample.max_tokens": 1,
}
UNREAD = re.compile(r"\.lock$|run\.json$|/samples/|\.png$|/text\.txt$")
GENERATE = ["run", "--device=cpu", "--prompt=Once", "--max_tokens=4", "--temperature=0"]
Figures = tuple[Any, ...]


class Specimen:
    """Files that can be damaged, in a folder that can be copied, and the commands that read them."""

    def __init__(self, name: str, folder: Path, commands: dict[str, Callable[[], Figures]]):
        """Take up a folder.

        Args:
            name: for messages.
            folder: where the files are.
            commands: name -> runs it in a copy of the folder, and returns what it computed; raises `Refused`.
        """
        self.name, self.folder, self.commands = name, folder, commands
        files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        self.files = [path for path in files if not UNREAD.search(f"/{path}")]
        copy = shutil.copytree(folder, folder.with_name(f"{folder.name}-known"))
        self.known = {command: run(copy, call)[0] for command, call in commands.items()}
        assert None not in self.known.values(), name
        shutil.rmtree(copy)

    def inject(self, file: Path, content: bytes, copy: Path) -> tuple[Verdict, str]:
        """Replace the content of a file in a copy of the folder, run all commands, and judge them."""
        shutil.copytree(self.folder, copy)
        (copy / file).write_bytes(content)
        refused = False
        try:
            for command, call in self.commands.items():
                found, said = run(copy, call)
                wrong = "" if found is None or said else differs(found, self.known[command])
                if wrong or said.startswith("lost"):
                    return "lost", f"{command}: {wrong or said}"
                refused |= found is None
        finally:
            shutil.rmtree(copy)
        return ("refused" if refused else "survived"), ""


class Refused(Exception):
    """A command ended with one line."""


def differs(found: Figures, known: Figures | None) -> str:
    """Return in what the figures differ; an empty string if they do not."""
    return "" if found == known else f"accepted, with {found} for {known}"


def run(folder: Path, call: Callable[[], Figures]) -> tuple[Figures | None, str]:
    """Run a command in a folder; return its figures, None where it refuses, and what it said."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found: Figures | None = call()
    except Refused:
        found = None
    except Exception as error:
        return None, f"lost, by {type(error).__name__}: {error}"
    finally:
        os.chdir(before)
    lines = [line for line in err.getvalue().splitlines() if line and "tokens: the first" not in line]
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != (found is None) or not all(line.startswith(("error: ", "note: ")) for line in lines):
        return found, f"lost, with {lines} on standard error"
    return found, "\n".join(lines)


def answer(main: Callable[[list[str]], int], words: list[str]) -> str:
    """Return what a command prints.

    Raises:
        Refused: its exit code is not 0.
    """
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if code := main(words):
            raise Refused(code)
    return out.getvalue()


class Twin:
    """The commands of one twin."""

    def __init__(self, package: str):
        self.package = package
        names = ("train", "evaluate", "generate")
        self.main = {name: importlib.import_module(f"{package}.{name}").main for name in names}
        self.engine = importlib.import_module(f"{package}.engine").Engine

    @contextlib.contextmanager
    def noting(self) -> Iterator[list[str]]:
        """Collect the digests of the states that engines restore."""
        restore, restored = self.engine.restore, []

        def noting(this: Any, folder: Path, optimizer: bool = True) -> None:
            restore(this, folder, optimizer)
            restored.append(digest_of(this))

        with patch.object(self.engine, "restore", noting):
            yield restored

    def train(self, words: Sequence[str]) -> Figures:
        """Train or resume; the curve, which takes half of the time, is not drawn."""
        with self.noting() as restored, patch.object(trainer, "plot_loss", lambda *_, **__: None):
            answer(self.main["train"], list(words))
        rows = Path("run/metrics.jsonl").read_text().splitlines()
        return tuple(restored), [json.loads(row) | {"tokens_per_second": 0} for row in rows]

    def evaluate(self, words: Sequence[str]) -> Figures:
        with self.noting() as restored:
            out = answer(self.main["evaluate"], ["run", "--device=cpu", *words])
        return re.findall(r"(?:loss|perplexity|bits per byte|tokens) +[\d.,]+", out), tuple(restored)

    def generate(self, words: Sequence[str]) -> Figures:
        return (answer(self.main["generate"], [*GENERATE, *words]),)


def digest_of(engine: Any) -> str:
    """Return the SHA-256 of all parameters and the optimizer's state."""
    state = engine.state
    if engine.framework == "jax":
        import jax

        leaves = jax.tree.leaves((state.params, state.opt_state))
    else:
        kept = state.optimizer.state.values() if state.optimizer else ()
        leaves = [*state.params.values(), *(t for moments in kept for t in moments.values())]
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def converted(source: str, to: str, words: Sequence[str]) -> Figures:
    """Convert, and return the content of all files, of torch and Hugging Face."""
    shutil.rmtree("out", ignore_errors=True)
    answer(convert, [source, f"--to={to}", "--out=out", *words])
    files = sorted(path for path in Path("out").rglob("*") if path.is_file())
    return tuple((str(path), hashlib.sha256(content(path)).hexdigest()) for path in files)


def content(path: Path) -> bytes:
    """Return what a file says, which is the same each time it is written.

    The safetensors library writes the fields of a header's metadata in another order each time, and the checksums of
    these files are in `checkpoint.json`.
    """
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        begin = 8 + int.from_bytes(data[:8], "little")
        return json.dumps(json.loads(data[8:begin]), sort_keys=True).encode() + data[begin:]
    if path.name == "checkpoint.json":
        fields = json.loads(data)
        return json.dumps({name: fields[name] for name in fields if name not in ("files", "checksum")}).encode()
    return data


def specimens(folder: Path, options: Sequence[str] = ()) -> Iterator[Specimen]:
    """Yield a run of each twin with its text, an export, and a run of each twin imported from it.

    Args:
        folder: an empty folder.
        options: further options of all commands.
    """
    resume = ["--run_dir=run", "--train.resume=auto"]
    further = {"torchlm": [f"--train.steps={STEPS + 1}"], "jaxlm": []}  # jax would compile the step each time
    exported = folder / "export"
    for package in ("torchlm", "jaxlm"):
        twin, place = Twin(package), folder / package
        place.mkdir()
        found, said = run(place, lambda twin=twin: twin.train([f"--{n}={v}" for n, v in OPTIONS.items()]))
        assert found is not None, said
        commands = {
            "evaluate": lambda twin=twin: twin.evaluate(options),
            "resume": lambda twin=twin: twin.train([*resume, *further[twin.package], *options]),
        }
        yield Specimen(f"{package} run", place, commands)
    for package in ("torchlm", "jaxlm"):
        twin, place = Twin(package), folder / f"imported-{package}"
        place.mkdir()
        if not exported.exists():
            exported.mkdir()
            run(folder, lambda: converted(str(folder / "torchlm" / "run"), "hf", ()))
            (folder / "out").rename(exported / "model")
            yield Specimen("export", exported, {"convert": lambda: converted("model", "torch", options)})
        words = [str(exported / "model"), f"--to={package.removesuffix('lm')}", f"--out={place / 'run'}"]
        run(folder, lambda words=words: (answer(convert, words),))
        (place / "text.txt").write_text("Once there was a fox. " * 9)
        commands = {
            "evaluate": lambda twin=twin: twin.evaluate(["--data.files=text.txt", *options]),
            "generate": lambda twin=twin: twin.generate(options),
            "convert": lambda: converted("run", "hf", options),
        }
        yield Specimen(f"{package} run, imported", place, commands)


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Let jax find what it has compiled before, unless a cache is set already."""
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    if jax.config.jax_compilation_cache_dir is not None:
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        reset_cache()


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Return what was done, and the content: one bit flipped, or, a quarter of the time, cut short."""
    if not content:
        return "one byte added", b"x"
    at = int(rng.integers(len(content)))
    if rng.random() < 0.25:
        return f"cut after {at:,} of {len(content):,} bytes", content[:at]
    bit = int(rng.integers(8))
    return f"bit {bit} of byte {at:,} flipped", content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def faults(count: int, folder: Path, options: Sequence[str] = ()) -> Iterator[Outcome]:
    """Inject `count` damages, in turn into each specimen and into each of its files.

    Args:
        count: number of damages.
        folder: an empty folder.
        options: further options of all commands, such as `--no_verify`, with which damage is accepted.
    """
    with compiled_once(folder / "compiled"):
        every = list(specimens(folder, options))
        for number in range(count):
            turn, which = divmod(number, len(every))
            specimen, rng = every[which], np.random.default_rng([count, number])
            order = np.random.default_rng([count, which]).permutation(len(specimen.files))
            file = specimen.files[order[turn % len(order)]]
            what, content = damaged((specimen.folder / file).read_bytes(), rng)
            verdict, detail = specimen.inject(file, content, folder / f"copy-{number}")
            yield Outcome(f"{specimen.name}, {file}: {what}", verdict, detail)
