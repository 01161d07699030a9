"""`python -m parity.convert SRC --to jax|torch|hf|peft|safetensors|gguf --out OUT`: convert a run or model.

With `--to jax` and `--to torch`, OUT is a whole run folder (weights, optimizer state, config, tokenizer, metrics up to
the checkpoint's step), so that the other twin's `train --train.resume auto` takes the next step. With `--to hf` it is a
Llama folder that transformers loads, with `--to safetensors` a file or folder of bare weights with torchlm's names, and
with `--to gguf` a file that llama.cpp runs. One or a few tensors are in memory at a time. Adapters are merged into the
weights, but for `--to peft`, a folder of adapters that peft loads. OUT is written under a temporary name and renamed
when all of it is on disk.

Of a run folder, the latest checkpoint is converted to resume training, and the best to use the model; `--checkpoint`
chooses. From a twin to itself, the framework's own files are copied unchanged.
"""

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lmcore.config import cli
from lmcore.errors import UserError, command, note, printable
from parity.convert.sources import Source, is_model, is_run, open_source

if TYPE_CHECKING:
    from parity.convert.gguf import Dtype
    from parity.convert.names import Side

__all__ = ["Target", "convert", "main"]

Target = Literal["jax", "torch", "hf", "peft", "safetensors", "gguf"]
"""What a model is converted to: a run of jaxlm or torchlm, a Hugging Face folder, adapters, weights, or a GGUF file."""


def convert(
    src: Path | str,
    to: Target,
    out: Path | str,
    force: bool = False,
    checkpoint: Literal["best", "latest"] | None = None,
    verify: bool = True,
    dtype: "Dtype | None" = None,
    model_config: Path | str | None = None,
    base: Path | str | None = None,
) -> Path:
    """Convert a run, a checkpoint, a Hugging Face Llama folder, a peft folder or bare weights.

    Args:
        src: what to convert.
        to: what to convert it to.
        out: folder to write, or file, whose name ends in `.safetensors` or `.gguf`.
        force: replace `out` if it is one of these already, once the new one is complete.
        checkpoint: of a run folder; None takes the latest to resume training, and the best for a model.
        verify: whether to compare a run's files with their checksums.
        dtype: of the matrices in a GGUF file; None takes f32.
        model_config: YAML file of a config, for bare weights that do not say what model they are of.
        base: the model that a peft folder adapts; None takes what it names. With `to` peft, what the folder is to name;
            None names the run or model that `src` adapts.

    Returns:
        `out`.

    Raises:
        UserError: `src` cannot be converted, or `out` cannot be written; `out` is then as it was.
    """
    paths = (None if path is None else Path(path) for path in (model_config, base))
    _convert(Path(src), to, Path(out), force, checkpoint, verify, dtype, *paths)
    return Path(out)


def _convert(
    src: Path,
    to: Target,
    out: Path,
    force: bool,
    which: Literal["best", "latest"] | None,
    verify: bool,
    dtype: "Dtype | None",
    model_config: Path | None,
    base: Path | None,
) -> Source:
    from parity.convert.peft import is_peft
    from parity.convert.replacing import recover, replacing, replacing_file

    recover(out)
    if dtype is not None and to != "gguf":
        raise UserError(f"--dtype: found {dtype!r} with --to {to}, which keeps every bit; leave it out")
    _check_out(out, src, to, force)
    if which and not (src.is_dir() and is_run(src)):
        raise UserError(f"--checkpoint: found {which!r}, but {src} is no run folder with several; leave it out")
    which = which or ("latest" if to in ("jax", "torch") else "best")
    source = opened = open_source(src, which, verify, model_config, base if is_peft(src) else None)
    if to == "peft" and source.config.model.lora is None:
        raise UserError(f"--to: found 'peft', but {src} has no adapters; convert it to hf")
    if base is not None and to != "peft" and not is_peft(src):
        raise UserError(f"--base: found {str(base)!r}, but {src} is no folder of adapters; leave it out")
    if to != "peft" and source.config.model.lora is not None:
        source = source.merged()
    if to == "jax" and source.config.train.precision == "float16":
        raise UserError(
            f"{src}: found train.precision float16, for which jaxlm has no gradient scaler; "
            "its weights alone can go to hf, and from there to jax"
        )
    if to in ("jax", "torch"):
        with replacing(out) as temporary:
            _write_run(temporary, out, source, to)
    else:
        with (replacing_file if _is_file(to, out) else replacing)(out) as temporary:
            _write_model(temporary, source, to, dtype or "f32", base)
    return opened


def _is_file(to: Target, out: Path) -> bool:
    """Return whether the output is a file, not a folder."""
    return to == "gguf" or (to == "safetensors" and out.suffix == ".safetensors")


def _write_model(path: Path, source: Source, to: Target, dtype: "Dtype", base: Path | None) -> None:
    """Write the weights, one at a time, to a file or a folder that exists; `base` is what a peft folder is to name."""
    from parity.convert.bare import write_bare
    from parity.convert.gguf import write_gguf
    from parity.convert.huggingface import write_folder
    from parity.convert.peft import write_peft
    from parity.convert.tensors import watched

    broken: list[str] = []
    config, tokenizer = source.config, source.tokenizer
    weights = watched(source.tensors("hf" if to in ("hf", "peft") else "torch"), broken)
    match to:
        case "hf":
            write_folder(path, config, weights, tokenizer, source.companions)
        case "peft":
            assert config.model.lora is not None
            write_peft(path, config.model.lora, weights, str(base or source.base))
        case "safetensors":
            write_bare(path, config, weights, tokenizer, source.companions)
        case "gguf":
            name = source.path.resolve().name
            for line in write_gguf(path, name, config.model, weights, tokenizer, source.companions, dtype):
                note(line)
    _note_not_finite(source, broken)


def _write_run(folder: Path, out: Path, source: Source, to: Literal["jax", "torch"]) -> None:
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
        for name in ("tokenizer.json", "tokenizer_config.json", "meta.json", "metrics.jsonl"):
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
    from parity.convert.tensors import Tensors, watched

    state, broken = source.state().to(to, source.config), list[str]()
    state = replace(state, params=watched(Tensors.of(state.params), broken))

    def writer(folder: Path) -> Callable[[], None]:
        write = write_state(folder, state, source.config)

        def finish() -> None:
            write()
            _note_not_finite(source, broken)

        return finish

    return writer


def _note_not_finite(source: Source, broken: list[str]) -> None:
    """Print a note where weights are NaN or infinite: they are converted unchanged, and the user should know."""
    if broken:
        what = f"{broken[0]} is not finite" + (f", nor are {len(broken) - 1} other weights" if broken[1:] else "")
        note(f"{source.path}: {what}; they are converted as they are")


def _check_out(out: Path, src: Path, to: Target, force: bool) -> None:
    """Raise UserError where `out` must not be overwritten."""
    from parity.convert.bare import is_bare
    from parity.convert.peft import is_peft

    if src.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--out: {out} is or holds {src}, which is to be converted; name another folder")
    if to == "gguf" and out.suffix != ".gguf":
        raise UserError(f"--out: found {str(out)!r}, expected the name of a file that ends in .gguf")
    if not os.path.lexists(out):
        return
    if not force:
        raise UserError(f"--out: {out} exists; name another, or replace it with --force")
    if _is_file(to, out):
        if out.is_symlink() or not (_is_gguf(out) if to == "gguf" else is_bare(out)):
            raise UserError(f"--out: {out} is no file of that kind, so --force does not replace it")
        return
    replaceable = out.is_dir() and (
        is_run(out) or is_model(out) or is_peft(out) or is_bare(out) or not any(out.iterdir())
    )
    if out.is_symlink() or not replaceable:
        raise UserError(f"--out: {out} is neither a run nor a Hugging Face model, so --force does not replace it")


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the command line says."""
    parser = cli.command_parser(
        "python -m parity.convert",
        "Convert a run, a checkpoint, a Hugging Face Llama folder or bare weights: with optimizer state, so that the "
        "other framework resumes training, or to a model that transformers or llama.cpp loads.",
        "SRC --to jax|torch|hf|peft|safetensors|gguf --out OUT [--dtype f32|f16|bf16|q8_0] [--base MODEL] "
        "[--checkpoint best|latest] [--force]",
    )
    parser.add_argument(
        "src",
        help="A run folder, one checkpoint, a Hugging Face Llama folder, a peft folder, or safetensors with our names.",
    )
    parser.add_argument(
        "--to",
        type=Target,
        required=True,
        help="What to convert it to: a run of jaxlm or torchlm, a Hugging Face folder, a folder of adapters for peft, "
        "bare weights, a GGUF file.",
    )
    parser.add_argument(
        "--out", type=str, required=True, help="Folder to write, or file, which ends in .safetensors or .gguf."
    )
    parser.add_argument(
        "--dtype",
        type=Literal["f32", "f16", "bf16", "q8_0"] | None,
        help="Type of the matrices in a GGUF file; null takes f32.",
    )
    parser.add_argument(
        "--checkpoint",
        type=Literal["best", "latest"] | None,
        help="Which one of a run folder; null takes the latest for jax and torch, else the best.",
    )
    parser.add_argument("--force", action="store_true", help="Replace what is there, if it is a run or model.")
    parser.add_argument(
        "--model_config", type=str | None, help="A run's config.yaml, for weights that do not say their own."
    )
    parser.add_argument(
        "--base",
        type=str | None,
        help="Model that a peft folder adapts; null takes what it names. With --to peft, what the folder is to name.",
    )
    cli.add_no_verify(parser)
    args = cli.parse_arguments(parser, argv)
    # A conversion needs no accelerator, and takes none from a training run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from parity.backends import BACKENDS

    out = Path(args.out)
    paths = (None if path is None else Path(path) for path in (args.model_config, args.base))
    options = args.force, args.checkpoint, not args.no_verify, args.dtype
    source = _convert(Path(args.src), args.to, out, *options, *paths)
    kinds = {
        "hf": "a Hugging Face model",
        "peft": "adapters for peft",
        "safetensors": "weights with torchlm's names",
        "gguf": "a GGUF file",
    }
    kind = kinds.get(args.to) or f"a run of {BACKENDS[args.to].package}"
    print(printable(f"{out}: {_what(source)}, as {kind}"))
    if args.to != "peft" and source.config.model.lora is not None:
        print("note: adapters are merged into the weights; --to peft keeps them apart")
    if args.to == "safetensors" and _is_file(args.to, out):
        print("note: a file holds the weights alone; a folder gets the tokenizer too")
    elif source.tokenizer is None:
        print(printable(f"note: {source.path} has no tokenizer.json, so {out} has none either; text needs one"))
    elif source.tokenizer.ignored:
        settings = ", ".join(source.tokenizer.ignored)
        what = "text is encoded in full, the same way each time"
        print(f"note: tokenizer.json sets {settings}, which has no effect: {what}")
    if args.to in ("jax", "torch"):
        trained = source.checkpoint is not None and source.config.model.lora is None
        text = "" if trained else " --data.files TEXT"
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
