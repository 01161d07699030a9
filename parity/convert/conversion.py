"""`python -m parity.convert SRC --to jax|torch|hf --out DIR`: convert a run or model to another framework.

With `--to jax` and `--to torch`, OUT is a whole run folder (weights, optimizer state, config, tokenizer, metrics up to
the checkpoint's step), so that the other twin's `train --train.resume auto` takes the next step. With `--to hf` it is a
Llama folder that transformers loads. OUT is written under a temporary name and renamed when all of it is on disk.

Of a run folder, the latest checkpoint is converted to resume training, and the best to use the model (`hf`);
`--checkpoint` chooses. From a twin to itself, the framework's own files are copied unchanged.
"""

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lmcore.config import cli
from lmcore.errors import UserError, command, note, printable

if TYPE_CHECKING:
    import numpy as np

    from lmcore.config import Config
    from lmcore.data.tokenizer import Tokenizer
    from lmcore.run.checkpoints import Checkpoint
    from parity.convert.companions import Companions
    from parity.convert.names import Side
    from parity.convert.states import State

__all__ = ["Source", "convert", "main", "open_source"]


@dataclass(frozen=True)
class Source:
    """A run, a checkpoint or a Hugging Face folder, opened."""

    path: Path
    side: "Side"
    config: "Config"
    tokenizer: "Tokenizer | None"
    """None where there is no `tokenizer.json`."""
    checkpoint: "Checkpoint | None"
    """None for a Hugging Face folder."""
    weights: "dict[str, np.ndarray] | None"
    """Weights of a Hugging Face folder, in the dtypes they are stored in; None for a checkpoint."""
    companions: "Companions"
    """Files of the Hugging Face folder that it is, or was imported from; none for other runs."""

    def state(self, optimizer: bool = True) -> "State":
        """Return weights and, if asked for, moments, in the source's own names; an imported model's moments are zero.

        Raises:
            UserError: a checkpoint cannot be read.
        """
        from parity.convert.moments import zero_moments
        from parity.convert.states import State, parameter_type, read_state

        if self.checkpoint is not None:
            return read_state(self.checkpoint, self.config, optimizer)
        assert self.weights is not None
        if not optimizer:
            return State("hf", 0, self.weights, None)
        params = {name: array.astype(parameter_type(self.config)) for name, array in self.weights.items()}
        return State("hf", 0, params, zero_moments(self.config, "hf", parameter_type(self.config)))


def open_source(path: Path, which: Literal["best", "latest"] = "best", verify: bool = True) -> Source:
    """Open a run, a checkpoint or a Hugging Face folder, and read all but a checkpoint's arrays.

    Args:
        path: a run folder, one checkpoint, or a Hugging Face Llama folder.
        which: checkpoint of a run folder.
        verify: whether to compare the files with their checksums.

    Raises:
        UserError: it is none of them, cannot be read, or is damaged.
    """
    from lmcore import config as configs
    from lmcore.data.tokenizer import Tokenizer
    from lmcore.model.memory import check_memory
    from lmcore.run.checkpoints import find_checkpoint
    from lmcore.run.folder import check_tokenizer
    from parity.backends import BACKENDS
    from parity.convert.companions import Companions
    from parity.convert.huggingface import read_folder

    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise UserError(f"{path}: found {found}, expected a run folder, a checkpoint, or a Hugging Face Llama folder")
    if _is_model(path):
        model = read_folder(path, verify)
        return Source(path, "hf", model.config, model.tokenizer, None, model.weights, model.companions)
    if not (_is_run(path) or _is_checkpoint(path)):
        raise UserError(
            f"{path}: found no config.yaml (a run), checkpoint.json (a checkpoint) or config.json (a Hugging Face "
            "model); expected one of them"
        )
    checkpoint = find_checkpoint(path, which, verify)
    if checkpoint.framework not in BACKENDS:
        raise UserError(
            f"{checkpoint.folder}: found framework {checkpoint.framework!r}, expected {' or '.join(BACKENDS)}"
        )
    config = configs.load(checkpoint.run_dir / "config.yaml", verify)
    check_memory(config, training=False)
    if verify:
        check_tokenizer(checkpoint.run_dir, checkpoint)
    file, named = checkpoint.run_dir / "tokenizer.json", config.tokenizer
    tokenizer = Tokenizer.load(file, named.eot_token, named.stop_tokens) if file.exists() else None
    side = BACKENDS[checkpoint.framework].side
    return Source(path, side, config, tokenizer, checkpoint, None, Companions.of_run(checkpoint.run_dir, verify))


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").exists() or (path / "checkpoints").is_dir()


def _is_checkpoint(path: Path) -> bool:
    return (path / "checkpoint.json").exists()


def _is_model(path: Path) -> bool:
    return (path / "config.json").exists() and not _is_run(path)


def convert(
    src: Path | str,
    to: Literal["jax", "torch", "hf"],
    out: Path | str,
    force: bool = False,
    checkpoint: Literal["best", "latest"] | None = None,
    verify: bool = True,
) -> Path:
    """Convert a run, a checkpoint or a Hugging Face Llama folder.

    Args:
        src: what to convert.
        to: what to convert it to: a run of jaxlm or of torchlm, or a Hugging Face folder.
        out: folder to write.
        force: replace `out` if it is a run or a model already, once the new one is complete.
        checkpoint: of a run folder; None takes the latest to resume training, and the best for a model.
        verify: whether to compare a run's files with their checksums.

    Returns:
        `out`.

    Raises:
        UserError: `src` cannot be converted, or `out` cannot be written; `out` is then as it was.
    """
    _convert(Path(src), to, Path(out), force, checkpoint, verify)
    return Path(out)


def _convert(
    src: Path, to: "Side", out: Path, force: bool, which: Literal["best", "latest"] | None, verify: bool
) -> Source:
    from parity.convert.replacing import recover, replacing

    recover(out)
    _check_out(out, src, force)
    if which and not (src.is_dir() and _is_run(src)):
        raise UserError(f"--checkpoint: found {which!r}, but {src} is no run folder with several; leave it out")
    source = open_source(src, which or ("best" if to == "hf" else "latest"), verify)
    if to == "jax" and source.config.train.precision == "float16":
        raise UserError(
            f"{src}: found train.precision float16, for which jaxlm has no gradient scaler; "
            "its weights alone can go to hf, and from there to jax"
        )
    with replacing(out) as temporary:
        if to == "hf":
            _write_model(temporary, source)
        else:
            _write_run(temporary, out, source, to)
    return source


def _write_model(folder: Path, source: Source) -> None:
    from parity.convert.huggingface import write_folder

    state = source.state(optimizer=False).to("hf", source.config)
    _note_not_finite(source, state)
    write_folder(folder, source.config, state.params, source.tokenizer, source.companions)


def _write_run(folder: Path, out: Path, source: Source, to: "Side") -> None:
    """Write a run into `folder`, which will be renamed to `out`."""
    from lmcore import config as configs
    from lmcore.run.saving import Checkpoints
    from lmcore.run.storage import NotWritten
    from lmcore.run.trackers import JsonlTracker

    checkpoint, config = source.checkpoint, replace(source.config, run_dir=str(out))
    source_run = None if checkpoint is None else checkpoint.run_dir
    file = config.tokenizer.file and Path(config.tokenizer.file).resolve()
    if file and file == ((source_run or source.path) / "tokenizer.json").resolve():
        config = replace(config, tokenizer=replace(config.tokenizer, file=str(out / "tokenizer.json")))
    configs.save(config, folder / "config.yaml")
    source.companions.keep(folder)
    if source_run is None:
        if source.tokenizer is not None:
            source.tokenizer.save(folder / "tokenizer.json")
    else:
        for name in ("tokenizer.json", "meta.json", "metrics.jsonl"):
            if (source_run / name).exists():
                shutil.copyfile(source_run / name, folder / name)
        if (source_run / "samples").is_dir():
            shutil.copytree(source_run / "samples", folder / "samples")
    step, valid_loss = (0, None) if checkpoint is None else (checkpoint.step, checkpoint.valid_loss)
    JsonlTracker(folder / "metrics.jsonl", step).close()  # drops the rows after this step
    saver = Checkpoints(folder, to, keep=1)
    try:
        saver.save(step, valid_loss, _state_writer(source, to))
        saver.wait()
    except NotWritten as error:
        raise OSError(error.reason) from error  # `replacing` says what became of the folder
    finally:
        saver.close()


def _state_writer(source: Source, to: "Side") -> Callable[[Path], Callable[[], None]]:
    """Return the function that `lmcore.run.checkpoints` calls with the folder for the framework's own files."""
    if source.checkpoint is not None and source.checkpoint.framework == to:
        files = source.checkpoint.state

        def copy(folder: Path) -> Callable[[], None]:
            shutil.copytree(files, folder)
            return lambda: None

        return copy
    from parity.convert.states import write_state

    state = source.state().to(to, source.config)
    _note_not_finite(source, state)
    return lambda folder: write_state(folder, state, source.config)


def _note_not_finite(source: Source, state: "State") -> None:
    """Print a note where weights are NaN or infinite: they are converted unchanged, and the user should know."""
    import numpy as np

    broken = [name for name, array in state.params.items() if not np.isfinite(array.astype(np.float32)).all()]
    if broken:
        what = f"{broken[0]} is not finite" + (f", nor are {len(broken) - 1} other weights" if broken[1:] else "")
        note(f"{source.path}: {what}; they are converted as they are")


def _check_out(out: Path, src: Path, force: bool) -> None:
    """Raise UserError where `out` must not be overwritten."""
    if src.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--out: {out} is or holds {src}, which is to be converted; name another folder")
    if not os.path.lexists(out):
        return
    if not force:
        raise UserError(f"--out: {out} exists; name another folder, or replace it with --force")
    if out.is_symlink() or not out.is_dir() or not (_is_run(out) or _is_model(out) or not any(out.iterdir())):
        raise UserError(f"--out: {out} is neither a run nor a Hugging Face model, so --force does not replace it")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the command line says."""
    parser = cli.command_parser(
        "python -m parity.convert",
        "Convert a run, a checkpoint or a Hugging Face Llama folder, with its optimizer state, so that the "
        "other framework resumes training, or transformers loads the model.",
        "SRC --to jax|torch|hf --out DIR [--checkpoint best|latest] [--force]",
    )
    parser.add_argument("src", help="A run folder, one checkpoint, or a Hugging Face Llama folder.")
    parser.add_argument("--to", type=Literal["jax", "torch", "hf"], required=True, help="What to convert it to.")
    parser.add_argument("--out", type=str, required=True, help="Folder to write.")
    parser.add_argument(
        "--checkpoint",
        type=Literal["best", "latest"] | None,
        help="Which one of a run folder; null takes the latest for jax and torch, the best for hf.",
    )
    parser.add_argument("--force", action="store_true", help="Replace the folder if it is a run or model already.")
    cli.add_no_verify(parser)
    args = cli.parse_arguments(parser, argv)
    # A conversion needs no accelerator, and takes none from a training run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from parity.backends import BACKENDS

    out = Path(args.out)
    source = _convert(Path(args.src), args.to, out, args.force, args.checkpoint, not args.no_verify)
    kind = "a Hugging Face model" if args.to == "hf" else f"a run of {BACKENDS[args.to].package}"
    print(printable(f"{out}: {_what(source)}, as {kind}"))
    if source.tokenizer is None:
        print(printable(f"note: {source.path} has no tokenizer.json, so {out} has none either; text needs one"))
    elif source.tokenizer.ignored:
        settings = ", ".join(source.tokenizer.ignored)
        what = "text is encoded in full, the same way each time"
        print(f"note: tokenizer.json sets {settings}, which has no effect: {what}")
    if args.to != "hf":
        text = "" if source.checkpoint else " --data.files TEXT"
        command = f"python -m {BACKENDS[args.to].package}.train --run_dir {shlex.quote(str(out))}"
        print(printable(f"resume with: {command} --train.resume auto{text}"))
    return 0


def _what(source: Source) -> str:
    if source.checkpoint is None:
        return f"the model in {source.path}"
    loss = source.checkpoint.valid_loss
    return f"step {source.checkpoint.step:,} of {source.checkpoint.run_dir}" + (
        "" if loss is None else f" (validation loss {loss:.4f})"
    )
