"""Conversion between the twins: bit-exact with the optimizer's state, a run that goes on as if nothing had happened,
and an output folder that is whole or not there."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parity
import parity.convert.states
from jaxlm import train as jax_train
from jaxlm.engine import Engine as JaxEngine
from lmcore import config as configs
from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.run.checkpoints import best_checkpoint, find_checkpoint, list_checkpoints
from lmcore.run.folder import lock_run, unlock_run
from lmcore.run.saving import Checkpoints
from lmcore.run.trackers import read_metrics
from parity.convert.conversion import convert, main
from parity.convert.moments import Moments
from parity.convert.states import State, read_state, write_state
from torchlm import train as torch_train
from torchlm.engine import Engine as TorchEngine

TRAIN = {"jax": jax_train.main, "torch": torch_train.main}
OTHER = {"jax": "torch", "torch": "jax"}
OPTIONS = [
    *("--model.dim=25", "--model.n_heads=5", "--model.n_kv_heads=1", "--model.head_dim=6", "--model.ffn_dim=7"),
    *("--model.n_layers=2", "--model.max_seq_len=24", "--model.tie_embeddings=false"),
    *("--data.stories=60", "--tokenizer.vocab_size=300", "--train.batch_size=4", "--train.steps=8"),
    *("--log.every=1", "--eval.every=4", "--eval.windows=4", "--checkpoint.every=4", "--sample.every=3"),
    *("--sample.max_tokens=8", "--optim.lr=0.02", "--train.device=cpu"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An unbroken run of eight steps in each framework, with checkpoints after four and eight."""
    folder = tmp_path_factory.mktemp("runs")
    for framework, train in TRAIN.items():
        assert train([*OPTIONS, f"--run_dir={folder / framework}", f"--data.dir={folder / 'data'}"]) == 0
    return {framework: folder / framework for framework in TRAIN}


def at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def state_of(run: Path) -> State:
    checkpoint = list_checkpoints(run)[-1]
    return read_state(checkpoint, configs.load(run / "config.yaml"))


def same(one: State, other: State) -> bool:
    """Bit for bit, moments and counts included."""
    assert one.moments is not None
    assert other.moments is not None
    assert list(one.moments.arrays) == list(other.moments.arrays)
    pairs = [(one.params, other.params), *((a, other.moments.arrays[kind]) for kind, a in one.moments.arrays.items())]
    return (one.side, one.step, one.moments.count) == (other.side, other.step, other.moments.count) and all(
        list(a) == list(b) and all((a[n].dtype, a[n].tobytes()) == (b[n].dtype, b[n].tobytes()) for n in a)
        for a, b in pairs
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_metrics(run / "metrics.jsonl")]


def go_on(run: Path, framework: str, *more: str) -> np.ndarray:
    """Losses of the steps after the fourth."""
    assert TRAIN[framework]([f"--run_dir={run}", "--train.resume=auto", *more]) == 0
    return np.array([row["loss"] for row in rows(run)][4:])


@pytest.mark.parametrize("source", TRAIN)
def test_a_run_goes_on_in_the_other_framework_as_if_unbroken(source: str, runs: dict[str, Path], tmp_path: Path):
    target, unbroken = OTHER[source], rows(runs[source])
    out = convert(at(runs[source], 4), target, tmp_path / "out")
    assert rows(out) == unbroken[:4]
    assert (out / "samples" / "sample-000003.txt").exists()
    assert not (out / "samples" / "sample-000006.txt").exists()
    losses = go_on(out, target)
    expected = np.array([row["loss"] for row in unbroken[4:]])
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    for name in ("step", "tokens", "lr"):
        assert [row[name] for row in rows(out)] == [row[name] for row in unbroken]
    assert unbroken[3]["loss"] - unbroken[7]["loss"] > 0.1, "a run in which nothing is learnt proves little"
    assert {c.framework for c in list_checkpoints(out)} == {target}


@pytest.mark.parametrize(
    ("target", "lost"), [("torch", "mean"), ("torch", "square"), ("torch", "count"), ("jax", "square")]
)
def test_without_its_moments_a_run_goes_on_differently(target: str, lost: str, runs: dict[str, Path], tmp_path: Path):
    out = convert(at(runs[OTHER[target]], 4), target, tmp_path / "out")
    state, config = state_of(out), configs.load(out / "config.yaml")
    assert state.moments is not None
    state = replace(state, params=dict(state.params))  # read before the files are written again
    count, kept = state.moments.count, state.moments.in_memory()
    if lost == "count":
        count -= 1
    else:
        kept[lost] = {name: 0.9 * array for name, array in kept[lost].items()}
    shutil.rmtree(at(out, 4) / "state")
    write_state(at(out, 4) / "state", replace(state, moments=Moments(count, kept)), config)()
    with pytest.raises(AssertionError):
        go_on(out, target)  # its checksums tell
    losses = go_on(out, target, "--no_verify")
    expected = [row["loss"] for row in rows(runs[OTHER[target]])[4:]]
    assert losses[0] == pytest.approx(expected[0], abs=1e-5), "the first loss depends on the weights alone"
    assert np.abs(losses - expected).max() > 1e-4


@pytest.mark.parametrize("source", TRAIN)
def test_there_and_back_keeps_every_bit_and_the_run(source: str, runs: dict[str, Path], tmp_path: Path):
    there = convert(at(runs[source], 4), OTHER[source], tmp_path / "there")
    back = convert(there, source, tmp_path / "back")
    first = read_state(find_checkpoint(at(runs[source], 4)), configs.load(runs[source] / "config.yaml"))
    assert same(state_of(back), first)
    assert not same(state_of(runs[source]), first)
    assert first.moments is not None
    assert first.moments.count == first.step == 4
    assert min(np.abs(array).max() for array in first.moments.arrays["mean"].values()) > 0
    assert state_of(there).moments is not None
    go_on(back, source)
    assert rows(back) == rows(runs[source]), "to the bit, as if never converted"


def test_the_engines_themselves_read_the_same_numbers(runs: dict[str, Path], tmp_path: Path):
    """Held against each engine's own state, so that a reader and a writer cannot be wrong together."""
    out = convert(at(runs["jax"], 4), "torch", tmp_path / "out")
    config = configs.load(out / "config.yaml")
    jax_engine, torch_engine = JaxEngine(config), TorchEngine(config)
    jax_engine.restore(at(runs["jax"], 4) / "state")
    torch_engine.restore(at(out, 4) / "state")
    adam, optimizer = jax_engine.state.opt_state[0], torch_engine.state.optimizer
    assert optimizer is not None
    assert int(jax_engine.state.step) == torch_engine.state.step == 4
    parameters = dict(torch_engine.model.named_parameters())
    assert len(parameters) == len(jax_engine.state.params)
    for name, weight in jax_engine.state.params.items():
        p = parameters[name.replace(".kernel", ".weight")]
        kept = optimizer.state[p]
        assert float(kept["step"]) == int(adam.count) == 4
        for mine, theirs in ((p, weight), (kept["exp_avg"], adam.mu[name]), (kept["exp_avg_sq"], adam.nu[name])):
            found = mine.detach().numpy()
            assert np.array_equal(found.T if name.endswith(".kernel") else found, np.asarray(theirs)), name
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert {name for name, p in parameters.items() if id(p) not in decayed} == {n for n in parameters if "norm" in n}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_random_states_of_both_types_survive_the_way_round(precision: str, tied: bool, tmp_path: Path):
    run = made_run(tmp_path / "run", "jax", precision=precision, tied=tied)
    back = convert(convert(run, "torch", tmp_path / "there"), "jax", tmp_path / "back")
    assert same(state_of(back), state_of(run))
    assert {str(array.dtype) for array in state_of(tmp_path / "there").params.values()} == {precision}
    via_hf = convert(convert(run, "hf", tmp_path / "hf"), "jax", tmp_path / "imported")
    found, expected = state_of(via_hf), state_of(run)
    assert (found.step, found.moments.count) == (0, 0)
    assert {n: a.tobytes() for n, a in found.params.items()} == {n: a.tobytes() for n, a in expected.params.items()}
    assert not any(array.any() for arrays in found.moments.arrays.values() for array in arrays.values())
    config = configs.load(via_hf / "config.yaml")
    assert config.model == configs.load(run / "config.yaml").model
    assert config.train.precision == precision


SMALL = {"vocab_size": 300, "dim": 25, "n_layers": 1, "n_heads": 5, "n_kv_heads": 1, "head_dim": 6, "ffn_dim": 7}
LARGE = {"vocab_size": 8000, "dim": 512, "n_heads": 8, "ffn_dim": 1376}


def made_run(
    folder: Path,
    framework: str,
    *,
    precision: str = "float32",
    tied: bool = False,
    step: int = 7,
    loss: float = 2.5,
    scale: float = 1.0,
    shape: dict[str, int] = SMALL,
) -> Path:
    """A run folder with random numbers in it."""
    model = configs.ModelConfig(**shape, tie_embeddings=tied)
    config = Config(model=model, train=configs.TrainConfig(precision=precision))
    rng = np.random.default_rng(0)
    side = "jax" if framework == "jax" else "torch"
    wide = parity.convert.states.parameter_type(config)

    def arrays() -> dict[str, np.ndarray]:
        table = parity.convert.names.table(model)
        return {row.name(side): (scale * rng.standard_normal(row.shape_in(side))).astype(wide) for row in table}

    squares = {name: array**2 for name, array in arrays().items()}
    state = State(side, step, arrays(), Moments(step - 1, {"mean": arrays(), "square": squares}))
    saver = Checkpoints(folder, framework, keep=1)
    saver.save(step, loss, lambda place: write_state(place, state, config))
    saver.wait()
    saver.close()
    configs.save(config, folder / "config.yaml")
    return folder


def test_a_run_stands_for_its_latest_to_go_on_and_for_its_best_to_be_used(tmp_path: Path):
    run = made_run(tmp_path / "run", "torch", step=7)
    shutil.copytree(
        made_run(tmp_path / "later", "torch", step=9, loss=3.5) / "checkpoints", run / "checkpoints", dirs_exist_ok=True
    )
    assert best_checkpoint(list_checkpoints(run)).step == 7

    def step(name: str, *more: str) -> int:
        assert main([str(run), "--out", str(tmp_path / name), *more]) == 0
        return list_checkpoints(tmp_path / name)[0].step

    assert step("a", "--to=jax") == 9
    assert step("b", "--to=torch") == 9
    assert step("c", "--to=jax", "--checkpoint=best") == 7
    weights = {}
    for name, more in {"best": [], "latest": ["--checkpoint", "latest"]}.items():
        assert main([str(run), "--to=hf", "--out", str(tmp_path / name), *more]) == 0
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
    one = convert(at(run, 7), "hf", tmp_path / "one")
    assert (one / "model.safetensors").read_bytes() == weights["best"]


def test_between_a_twin_and_itself_the_files_are_copied(runs: dict[str, Path], tmp_path: Path):
    out = convert(at(runs["torch"], 4), "torch", tmp_path / "out")
    assert contents(out / "checkpoints") == {
        name: content for name, content in contents(runs["torch"] / "checkpoints").items() if "00000004" in name
    }
    go_on(out, "torch")
    assert rows(out) == rows(runs["torch"])


@pytest.mark.parametrize("to", ["torch", "hf"])
def test_weights_that_are_not_finite_are_converted_with_a_note(to: str, tmp_path: Path, capsys):
    broken = made_run(tmp_path / "broken", "jax", scale=np.inf)
    convert(made_run(tmp_path / "run", "jax"), to, tmp_path / "healthy")
    assert "finite" not in capsys.readouterr().err
    convert(broken, to, tmp_path / "out")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {broken}: ")
    assert line.endswith("they are converted as they are")


def test_float16_has_no_jax_to_go_to(tmp_path: Path):
    run = made_run(tmp_path / "run", "torch")
    config = configs.load(run / "config.yaml")
    configs.save(replace(config, train=replace(config.train, precision="float16")), run / "config.yaml")
    with pytest.raises(UserError, match="float16, for which jaxlm has no gradient scaler"):
        convert(run, "jax", tmp_path / "out")
    convert(convert(run, "hf", tmp_path / "hf"), "jax", tmp_path / "out")
    assert list_checkpoints(convert(run, "torch", tmp_path / "copy"))[0].framework == "torch"


def test_a_run_keeps_its_own_tokenizer_file(runs: dict[str, Path], tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(runs["torch"], run)
    config = configs.load(run / "config.yaml")
    for file, kept in ((run / "tokenizer.json", False), (runs["torch"] / "tokenizer.json", True)):
        named = configs.TokenizerConfig(kind="file", file=str(file))
        configs.save(replace(config, tokenizer=named), run / "config.yaml")
        out = convert(run, "jax", tmp_path / f"out{kept}")
        found = configs.load(out / "config.yaml").tokenizer.file
        assert found == str(file if kept else out / "tokenizer.json")


# The output folder.


def test_what_is_there_is_replaced_only_with_force(tmp_path: Path):
    run, out = made_run(tmp_path / "run", "jax"), tmp_path / "deep" / "out"
    convert(run, "hf", out)
    before = contents(out)
    with pytest.raises(UserError, match="out exists; name another, or replace it with --force"):
        convert(run, "torch", out)
    assert contents(out) == before
    convert(run, "torch", out, force=True)
    assert not (out / "config.json").exists()
    assert list_checkpoints(out)[0].framework == "torch"
    convert(run, "hf", out, force=True)
    assert contents(out) == before
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_force_replaces_no_folder_of_other_things(tmp_path: Path):
    run = made_run(tmp_path / "run", "jax")
    other = tmp_path / "thesis"
    other.mkdir()
    convert(run, "hf", other, force=True)
    shutil.rmtree(other)
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(convert(run, "hf", tmp_path / "model"))
    for name in ("thesis", "file", "link"):
        with pytest.raises(UserError, match="is neither a run nor a Hugging Face model"):
            convert(run, "hf", tmp_path / name, force=True)
    assert (other / "thesis.tex").read_text() == "years of work"


def test_the_working_folder_can_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = made_run(tmp_path / "run", "jax")
    monkeypatch.chdir(convert(run, "torch", tmp_path / "out"))
    convert(run, "hf", ".", force=True)
    assert (tmp_path / "out" / "config.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def test_the_source_is_never_replaced(tmp_path: Path):
    run = made_run(tmp_path / "run", "jax")
    before = contents(tmp_path)
    for src, out in ((run, run), (at(run, 7), run), (run, tmp_path), (run, run / "checkpoints" / "..")):
        with pytest.raises(UserError, match="which is to be converted"):
            convert(src, "torch", out, force=True)
    assert contents(tmp_path) == before


def test_a_run_in_use_is_not_replaced(tmp_path: Path):
    run = made_run(tmp_path / "run", "jax")
    out = convert(run, "torch", tmp_path / "out")
    handle = lock_run(out)
    try:
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "):
            convert(run, "torch", out, force=True)
    finally:
        unlock_run(handle)
    convert(run, "torch", out, force=True)


FAILURES = (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), RuntimeError("a bug"))


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("where", ["write_state", "write_folder", "flush_folder", "rename"])
def test_a_failure_leaves_what_was_there(
    where: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = made_run(tmp_path / "run", "jax")
    out = convert(run, "torch", tmp_path / "out")
    before = contents(tmp_path)

    def fail(*arguments: Any) -> None:
        raise failure

    module = {
        "write_state": "parity.convert.states.",
        "write_folder": "parity.convert.huggingface.",
        "flush_folder": "parity.convert.replacing.",
    }
    if where == "rename":
        whole = Path.rename
        monkeypatch.setattr(Path, "rename", lambda p, to: fail() if is_made(p) else whole(p, to))
    else:
        monkeypatch.setattr(f"{module[where]}{where}", fail)
    expected = UserError if isinstance(failure, OSError) else type(failure)
    for target, force in ((tmp_path / "new", False), (out, True)):
        with pytest.raises(expected):
            convert(run, "hf" if where == "write_folder" else "torch", target, force)
        assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}
        assert {name: content for name, content in contents(tmp_path).items() if name != "out/.lock"} == before


@pytest.mark.parametrize("to", ["jax", "torch", "hf", "safetensors", "gguf"])
def test_files_have_the_permissions_of_the_umask(to: Any, runs: dict[str, Path], tmp_path: Path):
    if to == "gguf":
        pytest.importorskip("gguf")
    before = os.umask(0o027)
    try:
        out = convert(at(runs["torch"], 4), to, tmp_path / ("out.gguf" if to == "gguf" else "out"))
        file = convert(at(runs["torch"], 4), "safetensors", tmp_path / "out.safetensors")
    finally:
        os.umask(before)
    written = [path for path in (out, file, *out.rglob("*")) if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in written if path.name != ".lock"} == {0o640}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize(("to", "end"), [("gguf", ".gguf"), ("safetensors", ".safetensors"), ("safetensors", "")])
def test_a_failure_leaves_no_part_of_a_model(to: Any, end: str, failure: BaseException, tmp_path: Path, monkeypatch):
    run = made_run(tmp_path / "run", "jax")

    def fail(path: Path, *arguments: Any) -> None:
        (path / "model.safetensors" if path.is_dir() else path).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(f"parity.convert.{'gguf.write_gguf' if to == 'gguf' else 'bare.write_bare'}", fail)
    with pytest.raises(UserError if isinstance(failure, OSError) else type(failure)):
        convert(run, to, tmp_path / f"out{end}")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def is_made(path: Path) -> bool:
    """Whether this is the folder that is to become OUT."""
    return path.name.startswith(".") and path.suffix == ".tmp"


# Mistakes.


def test_mistakes_are_one_line_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = made_run(tmp_path / "run", "jax")
    empty, bare = tmp_path / "empty", tmp_path / "bare"
    empty.mkdir()
    (bare / "checkpoints").mkdir(parents=True)
    model = convert(run, "hf", tmp_path / "model")
    out = str(tmp_path / "out")
    mistakes = {
        "found nothing, expected a run folder": [str(tmp_path / "nowhere"), "--to=hf", "--out", out],
        "found a file, expected a run folder": [str(run / "config.yaml"), "--to=hf", "--out", out],
        "found no config.yaml (a run), checkpoint.json": [str(empty), "--to=hf", "--out", out],
        "found no checkpoint, expected a run folder": [str(bare), "--to=hf", "--out", out],
        "to: found 'tf', expected one of jax, torch, hf, peft, safetensors, gguf": [str(run), "--to=tf", "--out", out],
        "required: to": [str(run), "--out", out],
        "required: out": [str(run), "--to=hf"],
        "--froce: no such field; did you mean force?": [str(run), "--to=hf", "--out", out, "--froce"],
        "is no run folder with several": [str(at(run, 7)), "--to=hf", "--out", out, "--checkpoint=best"],
        "is no run folder with several; leave it out": [str(model), "--to=jax", "--out", out, "--checkpoint=best"],
        "checkpoint: found 'worst'": [str(run), "--to=hf", "--out", out, "--checkpoint=worst"],
        "cannot be written": [str(run), "--to=hf", "--out", str(run / "config.yaml" / "out")],
    }
    before = contents(tmp_path)
    for message, argv in mistakes.items():
        assert main(argv) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert contents(tmp_path) == before
    assert main([str(run), "--to=hf", "--out", out]) == 0


def test_a_damaged_checkpoint_is_told(tmp_path: Path):
    for framework in TRAIN:
        run = made_run(tmp_path / framework, framework)
        out, place = tmp_path / "out", at(run, 7)
        described = (place / "checkpoint.json").read_text()
        (place / "checkpoint.json").write_text(described.replace("7", "8"))
        with pytest.raises(UserError, match=r"checkpoint.json: is damaged"):
            convert(run, OTHER[framework], out)
        older = json.dumps({"framework": framework, "step": 7, "valid_loss": 2.5})  # no checksums
        (place / "checkpoint.json").write_text(older.replace("7", "8"))
        with pytest.raises(UserError, match="found the state of step 7, expected that of step 8"):
            convert(run, OTHER[framework], out)
        (place / "checkpoint.json").write_text(older.replace(framework, "mlx"))
        with pytest.raises(UserError, match="found framework 'mlx', expected jax or torch"):
            convert(run, OTHER[framework], out)
        (place / "checkpoint.json").write_text(described)
        config = configs.load(run / "config.yaml")
        for wrong in ({"n_layers": 2}, {"ffn_dim": 8}):
            configs.save(replace(config, model=replace(config.model, **wrong)), run / "config.yaml")
            with pytest.raises(UserError):
                convert(run, OTHER[framework], out)
        configs.save(config, run / "config.yaml")
        for path in (place / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match="is damaged"):
            convert(run, OTHER[framework], out)
        (place / "checkpoint.json").write_text(older)
        with pytest.raises(UserError, match="cannot be read"):
            convert(run, OTHER[framework], out)
        (run / "config.yaml").unlink()
        with pytest.raises(UserError, match=r"config.yaml: cannot be read"):
            convert(at(run, 7), OTHER[framework], out)
        assert not out.exists()


# The package.


def test_the_package_offers_the_function_whatever_was_imported_before(tmp_path: Path):
    run = made_run(tmp_path / "run", "jax")
    assert parity.convert(run, "hf", tmp_path / "out") == tmp_path / "out"
    code = "from parity import convert; print(convert(*__import__('sys').argv[1:]))"
    done = in_process("-c", code, str(run), "torch", str(tmp_path / "more"))
    assert done.stdout.strip() == str(tmp_path / "more")
    with pytest.raises(AttributeError, match="no attribute 'comparison'"):
        _ = parity.comparison


def in_process(*argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, *argv], env=environment, text=True, capture_output=True, check=True)


def test_the_command_says_what_it_did_and_how_to_go_on(runs: dict[str, Path], tmp_path: Path):
    out = tmp_path / "out"
    done = in_process("-m", "parity.convert", str(at(runs["jax"], 4)), "--to", "torch", "--out", str(out))
    assert done.stderr == ""
    assert f"step 4 of {runs['jax']} (validation loss " in done.stdout
    advice = f"resume with: python -m torchlm.train --run_dir {out} --train.resume auto"
    assert done.stdout.splitlines()[-1] == advice
    assert torch_train.main(advice.split()[5:]) == 0
    assert rows(out)[-1]["step"] == 8


def test_help_is_quick_because_it_loads_no_framework():
    code = "import sys, parity.convert as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'jax', 'torch', 'numpy', 'tokenizers', 'safetensors'} & set(sys.modules)))"
    done = in_process("-c", code)
    assert "--checkpoint" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


PEAK = """
import re, sys
from pathlib import Path
from parity.convert.conversion import main
from parity.convert.sources import open_source
run, to, out = sys.argv[1:]
if to == "held":
    state = open_source(Path(run), verify=False).state()
    held = dict(state.params), state.moments.in_memory()
else:
    assert main([run, "--to", to, "--out", out, "--no_verify"]) == 0
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("framework", TRAIN)
def test_memory_does_not_grow_with_the_model(framework: str, tmp_path: Path):
    """18 layers more, 227 MB of weights and 454 MB of moments, cost little; held in memory, they cost all of that."""
    other, peaks = OTHER[framework], dict[str, list[int]]()
    for layers in (2, 20):
        run = made_run(tmp_path / f"{layers}", framework, shape=LARGE | {"n_layers": layers})
        for to, end in (("hf", ""), ("safetensors", ".safetensors"), (other, ""), ("held", "")):
            done = in_process("-c", PEAK, str(run), to, str(tmp_path / f"{layers}-{to}{end}"))
            peaks.setdefault(to, []).append(int(done.stdout.splitlines()[-1]) // 1024)
    grown = {to: larger - smaller for to, (smaller, larger) in peaks.items()}
    print(peaks)
    assert max(grown["hf"], grown["safetensors"]) < 30, peaks
    assert grown[other] < 100, peaks
    assert grown["held"] > 500, peaks
