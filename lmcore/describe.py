"""`python -m lmcore.describe [RUN]`: print what a bug report needs: versions, machine, settings, and a run's facts.

No framework is imported, so the command answers, and quickly, where an installation is broken too.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import lmcore
from lmcore.errors import OneLineParser, UserError, command, printable
from lmcore.hardware import cpu_features, cpu_name, memory_bytes, usable_cores

__all__ = ["environment", "machine", "main", "project", "variables", "versions"]

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("torch", "transformers", "tokenizers", "numpy"),
)
"""Distributions whose version changes results or speed."""
VARIABLES = (
    *("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GLIBC_TUNABLES"),
)
"""Environment variables that choose devices, threads or memory settings."""
SECONDS = 10
"""How long another program may take to answer."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the project computes with."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, str]:
    """Processor, its instructions that matter to a matmul, main memory and operating system."""
    features = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in cpu_features().items())
    return {
        "processor": f"{cpu_name()}, {usable_cores()} cores",
        "instructions": features or "unknown",
        "memory": f"{memory_bytes() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
    }


def variables() -> dict[str, str]:
    """Those environment variables of `VARIABLES` that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def environment() -> dict[str, str]:
    """All of it, as a report shows it."""
    return versions() | machine() | variables()


def project() -> str:
    """The project's version, and the commit where this is a checkout with git."""
    root = Path(lmcore.__file__).parents[1]
    commit = _answer("git", "-C", str(root), "describe", "--always", "--dirty") if (root / ".git").exists() else ""
    return lmcore.__version__ + (f", commit {commit}" if commit else "")


def _gpus() -> str:
    """What NVIDIA's driver says of its GPUs."""
    found = _answer("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return "; ".join(found.splitlines()) or "none that nvidia-smi knows"


def _answer(program: str, *arguments: str) -> str:
    """What another program prints; nothing where it is missing, fails or hangs."""
    if shutil.which(program) is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _run(folder: Path) -> dict[str, str]:
    """What a run says of itself, and its last checkpoint; a file that cannot be read is reported as such.

    Raises:
        UserError: there is no run.
    """
    from lmcore.run.checkpoints import checkpoint_folders

    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder}: {'found no config.yaml' if folder.exists() else 'no such folder'}, expected a run")
    saved = checkpoint_folders(folder)
    return {"run": str(folder), **_origin(folder / "run.json"), "checkpoint": saved[-1].name if saved else "none"}


def _origin(path: Path) -> dict[str, str]:
    """What `run.json` says: model, text, the config's fields that are no defaults, and where the run was started."""
    from lmcore.config import Config, flatten
    from lmcore.parsing import read_json

    try:
        facts = read_json(path)
        lines = {name: str(facts[name]) for name in ("framework", "device", "parameters", "seed") if name in facts}
        lines |= {f"SHA-256 of {name}": digest for name, digest in facts.get("text", {}).items()}
        if "config" in facts:
            default = dict(flatten(Config()))
            changed = [f"{name} {value}" for name, value in facts["config"].items() if value != default.get(name)]
            lines["not the default"] = ", ".join(changed) or "nothing"
        starts = facts.get("starts", [])
        for number, start in enumerate(starts, 1):
            lines[f"start {number}"] = f"{start['time']}, step {start['step']:,}, {start['command']}"
        if starts:
            now = {"twinlm": project(), **environment()}
            other = [f"{name} {starts[-1][name]}" for name in now if starts[-1].get(name, now[name]) != now[name]]
            lines["other than now"] = ", ".join(other) or "nothing"
        return lines
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        return {"run.json": f"cannot be read: {error}"}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print the description that the command line asks for."""
    parser = OneLineParser(
        "python -m lmcore.describe",
        description="Print what a bug report needs: versions, machine, the environment variables that matter and are "
        "set, and of a run its model, text, config, starts and last checkpoint.",
    )
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help="Folder of a run.")
    args = parser.parse_args(argv)
    facts = {"twinlm": project(), **versions(), **machine(), "GPU": _gpus(), **variables()}
    facts["system"] = platform.platform()
    if args.run is not None:
        facts |= _run(args.run)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {printable(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
