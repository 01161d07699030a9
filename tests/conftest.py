"""What every test runs under: checked shapes and types, JAX on two CPU devices, one thread per library.

Everything here is set before the packages, JAX or torch are first imported; the environment also reaches the
programs that tests start.
"""

import os
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

# An int is a float where a float is asked for, as mypy has it (PEP 484).
_CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["lmcore", "jaxlm", "torchlm", "parity"], _CHECKER)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "2"  # the cheapest mesh: what is sharded wrongly shows
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a test proves what it compiles, and leaves no files behind
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch: small tensors, and test processes side by side
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and fork don't mix
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402

jax.devices()  # both exist from here on; else the first test that asks for one device would decide for all

hypothesis.settings.register_profile("lm", deadline=None, print_blob=True)  # the first example may compile
hypothesis.settings.load_profile("lm")


@pytest.fixture(scope="session")
def lm_data() -> Path:
    """The folder of real text named by LM_DATA; a test that needs it is skipped without."""
    folder = os.environ.get("LM_DATA")
    if not folder:
        pytest.skip("LM_DATA is not set: it names the folder of real text (tinystories/, tinyshakespeare/, …)")
    return Path(folder)
