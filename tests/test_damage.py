"""No damage is trained on or evaluated in silence: refused in one line, passed over with a note, or harmless.

Seeded flips of single bits and truncations over every file of a run and of its text; each is followed by an evaluation
and a resume, whose figures and restored state must be those of the undamaged run wherever nothing is said.
"""

import hashlib
import importlib
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcore.run import trainer

STEPS = 4
OPTIONS = {
    "run_dir": "run",
    "data.dir": "data",
    "model.dim": 8,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.max_seq_len": 16,
    "data.stories": 20,
    "tokenizer.kind": "bytes",
    "train.device": "cpu",
    "train.cpu_devices": 1,
    "train.steps": STEPS,
    "train.batch_size": 2,
    "log.every": 1,
    "eval.windows": 2,
    "checkpoint.every": 2,
    "sample.max_tokens": 1,
}
UNREAD = re.compile(r"\.lock$|run\.json$|/samples/|\.png$")
Figures = tuple[Any, ...]


class Twin:
    """A finished run of one twin, with its text, in a folder that can be copied, and what its commands say."""

    def __init__(self, package: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.name, self.folder, self.monkeypatch = package, folder, monkeypatch
        self.commands = {name: importlib.import_module(f"{package}.{name}").main for name in ("evaluate", "train")}
        self.restored: list[str] = []
        """Digests of the states that an engine has taken up."""
        engine = importlib.import_module(f"{package}.engine").Engine
        restore = engine.restore

        def noting(this: Any, folder: Path, optimizer: bool = True) -> None:
            restore(this, folder, optimizer)
            self.restored.append(digest_of(this))

        monkeypatch.setattr(engine, "restore", noting)
        monkeypatch.setattr(trainer, "plot_loss", lambda *_, **__: None)  # half of the time
        monkeypatch.chdir(folder)
        assert self.commands["train"]([f"--{name}={value}" for name, value in OPTIONS.items()]) == 0

    def figures(self, name: str, words: list[str], capsys: Any) -> tuple[Figures | None, str]:
        """Figures that a command gives, None where it refuses, and its notes and errors."""
        self.restored.clear()
        capsys.readouterr()
        code = self.commands[name](words)
        out, err = capsys.readouterr()
        assert all(line.startswith(("error: ", "note: ")) for line in err.splitlines()), err
        assert err.count("error: ") == (code != 0), (code, err)
        if code:
            return None, err
        printed = re.findall(r"(?:loss|perplexity|bits per byte|tokens) +[\d.,]+", out)
        rows = Path("run/metrics.jsonl").read_text().splitlines() if name == "train" else []
        untimed = [json.loads(row) | {"tokens_per_second": 0} for row in rows]
        return (printed, tuple(self.restored), untimed), err


def digest_of(engine: Any) -> str:
    """SHA-256 of all parameters and the optimizer's state."""
    state = engine.state
    if engine.framework == "jax":
        import jax

        leaves = jax.tree.leaves((state.params, state.opt_state))
    else:
        kept = state.optimizer.state.values() if state.optimizer else ()
        leaves = [*state.params.values(), *(t for moments in kept for t in moments.values())]
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


@pytest.fixture(scope="module", params=["jaxlm", "torchlm"])
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Twin(request.param, tmp_path_factory.mktemp(request.param), monkeypatch)


def commands(steps: int) -> dict[str, list[str]]:
    return {"evaluate": ["run"], "train": ["--run_dir=run", "--train.resume=auto", f"--train.steps={steps}"]}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The same but for one bit, or, a quarter of the time, cut short."""
    at = int(rng.integers(len(content)))
    if rng.random() < 0.25:
        return content[:at]
    return content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]


def judge(twin: Twin, tmp_path: Path, damages: int, steps: int, capsys: Any) -> tuple[Counter[str], list[str]]:
    """Count what becomes of the damages, and list those that were accepted with other figures."""
    rng = np.random.default_rng(damages)
    files = [path.relative_to(twin.folder) for path in sorted(twin.folder.rglob("*")) if path.is_file()]
    files = [path for path in files if not UNREAD.search(f"/{path}")]
    known: dict[str, Figures | None] = {}
    outcomes: Counter[str] = Counter()
    accepted = []
    order = sorted(rng.permutation(len(files)), key=lambda i: files[i].name != "valid.bin")  # one that is refused
    for index in range(-1, damages):
        copy = shutil.copytree(twin.folder, tmp_path / f"{steps}-{index}")
        twin.monkeypatch.chdir(copy)
        file = files[order[index % len(files)]]
        if index >= 0:
            content = (copy / file).read_bytes()
            (copy / file).write_bytes(damaged(content, rng) if content else b"x")
        for name, words in commands(steps).items():
            found, errors = twin.figures(name, words, capsys)
            if index < 0:
                assert errors == "", "the undamaged run has nothing to say"
                assert found is not None
                known[name] = found
                continue
            outcome = "refused" if found is None else "said" if errors else "harmless"
            if outcome == "harmless" and found != known[name]:
                outcome = "accepted"
                accepted.append(f"{name}, {file}: {len(content)} bytes, {found} for {known[name]}")
            outcomes[outcome] += 1
        shutil.rmtree(copy)
    return outcomes, accepted


def test_no_damage_is_accepted_in_silence(twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    outcomes, accepted = judge(twin, tmp_path, 12, STEPS, capsys)
    assert accepted == []
    assert outcomes["refused"] > 0
    assert outcomes["said"] > 0


@pytest.mark.slow
def test_no_damage_of_hundreds_is_accepted_in_silence(twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    further = twin.name == "torchlm"  # jax compiles it anew each time
    outcomes, accepted = judge(twin, tmp_path, 240, STEPS + further, capsys)
    assert accepted == []
    assert outcomes["refused"] + outcomes["said"] > 100, outcomes
    with capsys.disabled():
        print(f"\n{twin.name}: {dict(outcomes)}")


@pytest.mark.parametrize("file", ["valid.bin", "metrics.jsonl"])
def test_what_is_accepted_would_be_seen(twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str):
    copy = shutil.copytree(twin.folder, tmp_path / "copy")
    twin.monkeypatch.chdir(copy)
    name, words = list(commands(STEPS).items())[file == "metrics.jsonl"]
    known, _ = twin.figures(name, words, capsys)
    [path] = copy.rglob(file)
    content = path.read_bytes()
    path.write_bytes(re.sub(rb'"lr": \d', b'"lr": 7', content) if name == "train" else content[2:4] + content[2:])
    found, errors = twin.figures(name, [*words, "--no_verify"], capsys)
    assert found is not None
    assert found != known
    assert errors == "" or name == "train"
