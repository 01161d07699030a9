"""The weights that `train.init_from` names, with their model config and tokenizer, in one form for both twins.

A run of either framework, one of its checkpoints, a Hugging Face folder or bare weights is converted once, by `python
-m parity.convert` in a process of its own: it knows all formats, and the twins don't import it. The result is kept in
`data.dir`, as bare weights (docs/formats.md) under a name with a fingerprint of the source's files.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import Config, ModelConfig, TokenizerConfig, flatten, from_dict, to_dict
from lmcore.errors import UserError, note
from lmcore.files import check_folder, check_sums, checksums, file_digest
from lmcore.locks import lock
from lmcore.parsing import read_json

__all__ = ["Pretrained", "open_pretrained"]

FORMAT = 1
"""Changes whenever what `parity.convert` writes does, so that an older conversion is not used."""
FIELD = "twinlm"
"""Name, in the metadata of a file of bare weights, of the model's and the tokenizer's config."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER, COMPANIONS = "tokenizer.json", "huggingface"

CHANGEABLE = ("lora", "dropout", "scan_layers", "init", "max_seq_len", "rope_scaling")
"""Fields of `model` that may differ from the source's: the weights fit all the same, and longer contexts are trained.
With learned positions, `max_seq_len` is a shape."""


@dataclass(frozen=True)
class Pretrained:
    """Weights to start from."""

    source: str
    """Path that the user named."""
    folder: Path
    """Bare weights, and perhaps a tokenizer and the files that came with a Hugging Face model."""
    model: ModelConfig
    tokenizer: TokenizerConfig | None
    """None where the source has no `tokenizer.json`."""

    def fields(self) -> dict[str, Any]:
        """Return dotted name -> plain value of the config's fields that the source decides."""
        groups = {"model": to_dict(self.model)}
        if self.tokenizer is not None:
            groups["tokenizer"] = to_dict(self.tokenizer)
        return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}

    def check(self, config: Config) -> None:
        """Check that a config describes this model and reads text with its tokenizer, and that the files are whole.

        Raises:
            UserError: a field has another value than the source.
            Damaged: a file does not match its checksum.
        """
        if config.checkpoint.verify:
            check_sums(self.folder)
        changeable = set(CHANGEABLE) - ({"max_seq_len"} if self.model.position == "learned" else set())
        expected = {
            name: value for name, value in flatten(self.model, "model.") if name.split(".")[1] not in changeable
        }
        if self.tokenizer is not None:
            expected |= {f"tokenizer.{name}": getattr(self.tokenizer, name) for name in ("kind", "eot_token")}
        elif config.tokenizer.kind != "file":
            raise UserError(
                f"train.init_from: {self.source} has no {TOKENIZER}; name the tokenizer that its model was trained "
                "with, by --tokenizer.kind file --tokenizer.file FILE"
            )
        found = dict(flatten(config))
        for name, value in expected.items():
            if found[name] != value:
                raise UserError(
                    f"{name}: found {found[name]!r}, expected {value!r}, as train.init_from, {self.source}, has it; "
                    "leave the field out"
                )
        own, file = self.folder / TOKENIZER, Path(config.tokenizer.file or "")
        if self.tokenizer is not None and file_digest(file) != file_digest(own):
            raise UserError(
                f"tokenizer.file: found {str(file)!r}, expected the tokenizer of train.init_from, {self.source}; "
                "leave the field out"
            )

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Name of a tensor -> its file."""
        from safetensors import safe_open

        index = self.folder / INDEX
        if index.exists():
            return {name: self.folder / file for name, file in read_json(index)["weight_map"].items()}
        with safe_open(self.folder / SINGLE, framework="numpy") as file:
            return dict.fromkeys(file.keys(), self.folder / SINGLE)

    def weight(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return one parameter, in float64 if it is stored so, else in float32; see `lmcore.model.init.Weights`."""
        from safetensors import safe_open

        stored = f"{name.removesuffix('.kernel')}.weight" if name.endswith(".kernel") else name
        with safe_open(self._files[stored], framework="numpy") as file:
            array = file.get_tensor(stored)
        array = array.T if name.endswith(".kernel") else array  # a file has matrices as outputs × inputs
        assert array.shape == shape, f"{name}: found {array.shape}, expected {shape}"
        return array if array.dtype == np.float64 else array.astype(np.float32)

    def copy_companions(self, run_dir: Path) -> None:
        """Copy the files that came with a Hugging Face model into a run folder, for its export."""
        if (self.folder / COMPANIONS).is_dir():
            shutil.copytree(self.folder / COMPANIONS, run_dir / COMPANIONS, dirs_exist_ok=True)

    def sums(self) -> dict[str, str]:
        """Return file -> SHA-256 of the weights and the tokenizer."""
        return checksums(self.folder)


def open_pretrained(
    source: str, data_dir: str, report: Callable[[str], None] = print, verify: bool = True
) -> Pretrained:
    """Open what `train.init_from` names, converted if it is used for the first time.

    Args:
        source: `train.init_from`.
        data_dir: `data.dir`, where the conversion is kept.
        report: called with each line of progress.
        verify: whether to compare a source that is converted with its checksums.

    Raises:
        UserError: it is none of the known formats, cannot be read, or is damaged.
    """
    cache, path = Path(data_dir).expanduser(), Path(source).expanduser()
    check_folder("data.dir", cache)
    if not path.exists():
        raise UserError(
            f"train.init_from: found nothing at {source!r}, expected a run, a checkpoint, a Hugging Face folder or a "
            "safetensors file; name one that exists"
        )
    folder = cache / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', path.resolve().name)}-{_fingerprint(path)}"
    if not folder.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            held = lock(cache / ".lock", lambda owner: report(f"waiting for {owner}, which uses {cache}"))
        except OSError as error:
            raise UserError(f"data.dir: {data_dir!r} cannot be written to ({error}); name another folder") from error
        try:
            if not folder.exists():  # another process may have been faster
                report(f"converting {source} for train.init_from")
                _convert(path, folder, verify)
        finally:
            held.release()
    model, tokenizer = _described(folder)
    return Pretrained(source, folder, model, tokenizer)


def _fingerprint(path: Path) -> str:
    """Return what changes with any file of a source: names, sizes and times, since weights are large."""
    folder = path.resolve().parent.parent if (path / "checkpoint.json").exists() else path  # with its run's config
    files = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(json.dumps([FORMAT, str(path.resolve()), facts]).encode()).hexdigest()[:12]


def _convert(path: Path, folder: Path, verify: bool) -> None:
    options = ["--to", "safetensors", "--out", str(folder), *([] if verify else ["--no_verify"])]
    command = [sys.executable, "-m", "parity.convert", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0:
        reason = lines[-1].removeprefix("error: ") if lines else f"parity.convert ended with {done.returncode}"
        raise UserError(f"train.init_from: {reason}")
    for line in lines:
        if line.startswith("note: "):
            note(line.removeprefix("note: "))


def _described(folder: Path) -> tuple[ModelConfig, TokenizerConfig | None]:
    """Return the config of the model and the tokenizer of bare weights."""
    from safetensors import safe_open

    file = folder / SINGLE
    if (folder / INDEX).exists():
        file = folder / next(iter(read_json(folder / INDEX)["weight_map"].values()))
    with safe_open(file, framework="numpy") as opened:
        fields = json.loads(opened.metadata()[FIELD])
    model = from_dict(ModelConfig, fields["model"])
    if not (folder / TOKENIZER).exists():
        return model, None
    named = from_dict(TokenizerConfig, fields["tokenizer"])
    return model, replace(named, kind="file", file=str(folder / TOKENIZER))
