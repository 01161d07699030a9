"""The hostile files of `tests.torture.hostile`: pickles, YAML tags, paths, sizes that lie, names."""

import gzip
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from lmcore import verify
from lmcore.data.prepare import main as prepare
from lmcore.files import seal
from parity.convert.conversion import main as convert
from tests.torture.damage import OPTIONS, Refused, answer
from tests.torture.hostile import Case, Lab, imports, reads, redescribe, reseal, restamp
from tests.torture.hostile_pages import PAGES

__all__ = ["CASES"]

Commands = list[Callable[[], object]]
TORCH = "run/checkpoints/step_00000004/state/params/model-00001-of-00001.safetensors"
ROOT = Path(__file__).parents[2]
MAX_GROWTH = 300 << 20
"""Bytes by which a bomb of a gigabyte may raise the memory in use."""


class Code:
    """An object whose pickle writes the marker when it is read."""

    def __init__(self, marker: Path):
        self.command = f"touch {marker}"

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def pickles() -> Iterator[Case]:
    """A pickle under every name that is read."""

    def in_run(package: str, file: str, lab: Lab, folder: Path) -> Commands:
        lab.copy(f"{package} run", folder)
        for path in list(folder.glob(f"run/{file}")) or [folder / "run" / file]:
            path.write_bytes(pickle.dumps(Code(lab.marker)))
        reseal(folder / "run")
        return reads(lab, package)

    state = "checkpoints/step_*/state"
    torch = [f"{state}/params/model-00001-of-00001.safetensors", f"{state}/optimizer/model-00001-of-00001.safetensors"]
    jax = [f"{state}/params/{name}" for name in ("_METADATA", "manifest.ocdbt", "d/*")]
    shared = ["config.yaml", "tokenizer.json", "meta.json", f"{state.removesuffix('/state')}/checkpoint.json"]
    for package, files in (("torchlm", [*torch, *shared]), ("jaxlm", [*jax, f"{state}/_CHECKPOINT_METADATA", *shared])):
        for file in files:
            yield Case(f"pickle as {package} {file}", partial(in_run, package, file), neutral=True)
    beside = "checkpoints/step_00000004/state/params"
    yield Case("pickle as DCP's index", partial(in_run, "torchlm", f"{beside}/.metadata"), neutral=True)
    yield Case("pickle beside the state", partial(in_run, "torchlm", f"{beside}/evil.pt"), neutral=True)

    def in_export(file: str, alone: bool, lab: Lab, folder: Path) -> Commands:
        model = lab.copy("export", folder) / "model"
        (model / "SHA256SUMS").unlink()
        if alone:
            (model / "model.safetensors").unlink()
        (model / file).write_bytes(pickle.dumps(Code(lab.marker)))
        return imports()

    for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        yield Case(f"pickle as {file} of an export", partial(in_export, file, False))
    for file in ("pytorch_model.bin", "model.pt", "model.pth"):
        yield Case(f"{file} for safetensors", partial(in_export, file, True))

    def as_baseline(code: bool, lab: Lab, folder: Path) -> Commands:
        lab.copy("torchlm run", folder)
        model = lab.copy("export", folder) / "model"
        (model / "SHA256SUMS").unlink()
        if code:
            (model / "evil.py").write_text(f"open({str(lab.marker)!r}, 'w')\nclass Model: pass\n")
            auto = {"AutoConfig": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
            (model / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
        else:
            (model / "model.safetensors").unlink()
            (model / "pytorch_model.bin").write_bytes(pickle.dumps(Code(lab.marker)))
        words = ["run", "--device=cpu", "--baseline=model"]
        return [partial(answer, lab.twins["torchlm"].main["evaluate"], words)]

    yield Case("a baseline whose weights are a pickle", partial(as_baseline, False))
    yield Case("a baseline that brings code", partial(as_baseline, True))

    def as_array(lab: Lab, folder: Path) -> Commands:
        model = lab.copy("export", folder) / "model"
        (model / "SHA256SUMS").unlink()
        with (model / "model.safetensors").open("wb") as file:
            np.save(file, np.array([Code(lab.marker)], object))
        return imports()

    yield Case("NumPy array of objects as safetensors", as_array)

    def as_text(name: str, lab: Lab, folder: Path) -> Commands:
        (folder / name).write_bytes(pickle.dumps(Code(lab.marker)))
        return [partial(answer, prepare, [f"--data.files={name}", "--data.dir=data", "--tokenizer.kind=bytes"])]

    for name in ("evil.txt", "evil.jsonl", "evil.parquet", "evil.txt.gz"):
        yield Case(f"pickle as {name}", partial(as_text, name))


def tags() -> Iterator[Case]:
    """YAML that names a Python object."""
    forms = ("!!python/object/apply:os.system [{}]", "!!python/object/new:os.system [{}]", "!!python/name:os.system")

    def in_config(form: str, lab: Lab, folder: Path) -> Commands:
        (folder / "evil.yaml").write_text("run_dir: " + form.format(f"touch {lab.marker}") + "\n")
        return [partial(answer, lab.twins["torchlm"].main["train"], ["--config=evil.yaml"])]

    def in_run(form: str, lab: Lab, folder: Path) -> Commands:
        lab.copy("torchlm run", folder)
        evil = form.format(f"touch {lab.marker}")
        restamp(folder / "run" / "config.yaml", lambda text: text.replace("run_dir: run", f"run_dir: {evil}"))
        return reads(lab, "torchlm")

    for form in forms:
        yield Case(f"{form.partition(' ')[0]} in a config", partial(in_config, form))
        yield Case(f"{form.partition(' ')[0]} in a run's config", partial(in_run, form))


def paths() -> Iterator[Case]:
    """Names and links that lead elsewhere."""

    def shard(name: str, lab: Lab, folder: Path) -> Commands:
        model = lab.copy("export", folder) / "model"
        (model / "SHA256SUMS").unlink()
        shutil.move(model / "model.safetensors", lab.outside / "model.safetensors")
        name = name.replace("OUTSIDE", str(lab.outside))
        index = {"weight_map": {"model.embed_tokens.weight": name}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        return imports()

    for name in ("../../outside/model.safetensors", "OUTSIDE/model.safetensors", "..", "a/../../x", "x\0y", "~/x"):
        yield Case(f"shard named {name!r}", partial(shard, name))

    def sums(name: str, lab: Lab, folder: Path) -> Commands:
        lab.copy("torchlm run", folder)
        redescribe(folder / "run", files={name.replace("OUTSIDE", str(lab.outside)): "0" * 64})
        return reads(lab, "torchlm")

    for name in ("../../../../outside/secret.txt", "OUTSIDE/secret.txt", "/dev/zero"):
        yield Case(f"checksum of {name}", partial(sums, name))

    def link(package: str, name: str, target: str, lab: Lab, folder: Path) -> Commands:
        lab.copy(f"{package} run", folder)
        path = folder / "run" / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(lab.outside / target)
        return reads(lab, package)

    for name, target in (
        *(("samples/sample-000001.txt", "secret.txt"), ("samples", "."), ("metrics.jsonl", "secret.txt")),
        *(("checkpoints", "."), ("checkpoints/step_00000001.tmp", "step_00000001"), (".lock", "new")),
        *(("config.yaml", "secret.txt"), ("tokenizer.json", "secret.txt"), ("meta.json", "secret.txt")),
        *(("checkpoints/step_00000004/state", "step_00000001"), ("run.json", "secret.txt"), ("loss.png", "secret.txt")),
        *(("checkpoints/step_00000004/checkpoint.json", "secret.txt"), ("tensorboard", "."), ("huggingface", ".")),
    ):
        yield Case(f"link {name} to the outside", partial(link, "torchlm", name, target))

    def companion(name: str, lab: Lab, folder: Path) -> Commands:
        model = lab.copy("export", folder) / "model"
        (model / "SHA256SUMS").unlink()
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(lab.outside / "secret.txt")
        return imports()

    for name in ("chat_template.jinja", "tokenizer.model", "added_tokens.json"):
        yield Case(f"link {name} of an export to the outside", partial(companion, name))


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    """Change the header of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def lengthen(length: int, path: Path) -> None:
    """Say that the header of a safetensors file has another length."""
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


def first(header: dict) -> dict:
    """Return the entry of a tensor."""
    return header[min(name for name in header if name != "__metadata__")]


HEADERS: dict[str, Callable[[dict], object]] = {
    "offsets beyond the file": lambda header: first(header).update(data_offsets=[0, 2**40]),
    "offsets of 2^63": lambda header: first(header).update(data_offsets=[2**63, 2**63 + 4]),
    "overlapping tensors": lambda header: [e.update(data_offsets=[0, 4]) for n, e in header.items() if n[0] != "_"],
    "a shape that is too large": lambda header: first(header).update(shape=[2**40, 2**40]),
    "a shape whose product overflows": lambda header: first(header).update(shape=[2**33, 2**33]),
    "a negative shape": lambda header: first(header).update(shape=[-1]),
    "an unknown type": lambda header: first(header).update(dtype="O"),
    "sharding that lies": lambda header: header.setdefault("__metadata__", {}).update(DCP_SHARDING_INFO='{"x": 1}'),
}


def sizes() -> Iterator[Case]:
    """Headers that lie about sizes."""

    def header(change: Callable[[Path], object], lab: Lab, folder: Path) -> Commands:
        lab.copy("torchlm run", folder)
        change(folder / TORCH)
        reseal(folder / "run")
        shutil.rmtree(folder / "run/checkpoints/step_00000002")
        exported = lab.copy("export", folder) / "model"
        (exported / "SHA256SUMS").unlink()
        change(exported / "model.safetensors")
        return [*reads(lab, "torchlm")[:-1], *imports()]  # from torch to torch, files are copied unread

    for length in (2**63, 2**62, 2**40, 1):
        yield Case(f"safetensors with a header of {length:,} bytes", partial(header, partial(lengthen, length)))
    for what, change in HEADERS.items():
        neutral = what.startswith("sharding")  # which an export need not have
        yield Case(f"safetensors with {what}", partial(header, partial(rewrite, change=change)), neutral)

    def tokens(fields: dict, lab: Lab, folder: Path) -> Commands:
        lab.copy("torchlm run", folder)
        for path in (folder / "run" / "meta.json", *folder.glob("data/*/meta.json")):
            found = json.loads(path.read_text())
            del found["checksum"]
            found |= {name: value for name, value in fields.items() if name in found}
            for split in found["splits"].values():
                split |= {name: value for name, value in fields.items() if name in split}
            path.write_text(json.dumps(seal(found)))
        return [commands for number, commands in enumerate(reads(lab, "torchlm")) if number in (0, 2)]

    for fields in ({"dtype": "O"}, {"dtype": "<f8"}, {"dtype": "V9999999999"}, {"tokens": 2**62}, {"tokens": -1}):
        yield Case(f"token files with {fields}", partial(tokens, fields))
    for fields in ({"tokens": 1e300}, {"documents": "x"}, {"bytes": None}, {"dtype": ["<u2"]}):
        yield Case(f"token files with {fields}", partial(tokens, fields))

    def description(fields: dict, lab: Lab, folder: Path) -> Commands:
        lab.copy("torchlm run", folder)
        redescribe(folder / "run", **fields)
        return reads(lab, "torchlm")

    for fields in ({"step": float("inf")}, {"valid_loss": "low"}, {"files": [1]}, {"run": {"metrics_bytes": -1}}):
        yield Case(f"a checkpoint with {fields}", partial(description, fields))
    yield Case("metrics of 2^62 bytes", partial(description, {"run": {"metrics_bytes": 2**62, "metrics": ""}}), True)

    def large(field: str, lab: Lab, folder: Path) -> Commands:
        lab.copy("torchlm run", folder)
        restamp(folder / "run" / "config.yaml", lambda text: text.replace(f"  {field}", f"  {field}000000000", 1))
        return reads(lab, "torchlm")

    def large_export(field: str, lab: Lab, folder: Path) -> Commands:
        model = lab.copy("export", folder) / "model"
        (model / "SHA256SUMS").unlink()
        (model / "config.json").write_text(json.dumps(json.loads((model / "config.json").read_text()) | {field: 10**9}))
        return imports()

    for field in ("hidden_size", "num_hidden_layers", "max_position_embeddings", "vocab_size", "head_dim"):
        yield Case(f"an export with a huge {field}", partial(large_export, field))
    for field in ("dim: 8", "n_layers: 1", "max_seq_len: 16"):
        yield Case(f"a config with a huge {field.partition(':')[0]}", partial(large, field))


def measured(words: list[str]) -> str:
    """Run lmcore.prepare; return by how much its memory grew, if that is too much.

    Raises:
        Refused: its exit code is not 0.
    """
    code = (
        "import resource, sys; from lmcore.data.prepare import main\n"
        "main(['--data.dir=small', '--data.stories=3', '--tokenizer.kind=bytes'])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "code = main(sys.argv[1:])\n"
        "print('grown', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before); sys.exit(code)"
    )
    how = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "text": True, "capture_output": True, "timeout": 300}
    done = subprocess.run([sys.executable, "-c", code, *words], **how)  # type: ignore[call-overload]
    grown = int(done.stdout.rpartition("grown ")[2]) << 10
    if grown > MAX_GROWTH:
        raise MemoryError(f"grew by {grown >> 20} MiB")
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise Refused(done.returncode)
    return ""


def bombs() -> Iterator[Case]:
    """Small files that unpack to large ones."""

    def bomb(name: str, begin: bytes, size: int, lab: Lab, folder: Path) -> Commands:
        with gzip.open(folder / name, "wb", compresslevel=9) as file:
            file.write(begin)
            for _ in range(size >> 20):
                file.write(b"a" * (1 << 20))
        words = [f"--data.files={name}", "--data.dir=data", "--tokenizer.kind=bytes"]
        return [partial(measured, words)]

    yield Case("a gigabyte of one line in .jsonl.gz", partial(bomb, "bomb.jsonl.gz", b'{"text": "', 1 << 30))
    yield Case("a hundred megabytes of one word in .txt.gz", partial(bomb, "bomb.txt.gz", b"", 100 << 20), True)


def names() -> Iterator[Case]:
    """Names by which a terminal would be commanded."""
    evil = "run\x1b]0;owned\x07\x1b[2J\x9b31m"

    def folder_name(lab: Lab, folder: Path) -> Commands:
        lab.copy("torchlm run", folder)
        (folder / "run").rename(folder / evil)
        twin = lab.twins["torchlm"]
        return [
            partial(answer, twin.main["evaluate"], [evil, "--device=cpu"]),
            partial(answer, twin.main["train"], [f"--run_dir={evil}", "--train.resume=auto"]),
            partial(answer, verify.main, [evil]),
            partial(answer, convert, [evil, "--to=torch", "--out=out\x1b[2J"]),
            partial(answer, twin.main["evaluate"], [f"{evil}-absent"]),
        ]

    yield Case("a run's name commands the terminal", folder_name, neutral=True)

    def tensor(lab: Lab, folder: Path) -> Commands:
        model = lab.copy("export", folder) / "model"
        (model / "SHA256SUMS").unlink()
        path = model / "model.safetensors"
        rewrite(path, lambda header: header.update({evil: header.pop("model.norm.weight")}))
        return imports()

    yield Case("a tensor's name commands the terminal", tensor)

    def described(lab: Lab, folder: Path) -> Commands:
        lab.copy("torchlm run", folder)
        redescribe(folder / "run", framework=evil)
        return reads(lab, "torchlm")

    yield Case("a framework's name commands the terminal", described)

    def prompt(lab: Lab, folder: Path) -> Commands:
        (folder / f"{evil}.txt").write_text("Once there was a fox. " * 99)
        text = f"--data.files={evil}.txt"
        words = [f"--{name}={value}" for name, value in OPTIONS.items() if name not in ("data.stories", "run_dir")]
        (folder / "evil.yaml").write_text(f"{json.dumps(evil)}: 1\n")
        train = lab.twins["torchlm"].main["train"]
        return [
            partial(answer, prepare, [text, "--data.dir=data", "--tokenizer.kind=bytes"]),
            partial(answer, train, [*words, *(f"--{name}={evil}" for name in ("run_dir", "sample.prompt")), text]),
            partial(answer, train, ["--config=evil.yaml"]),
            partial(answer, train, [f"--{evil}=1"]),
        ]

    yield Case("a text's, prompt's or field's name commands the terminal", prompt, neutral=True)


CASES = (*PAGES, *pickles(), *tags(), *paths(), *sizes(), *names(), *bombs())
