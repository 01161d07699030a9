"""The twins laid side by side: the same files, public names, order, arguments, shapes and first lines of docstrings.

What must differ is listed in `DIFFERENCES`, with the reason; an entry that no longer differs is a mistake too. The
sources are read, not imported, so that neither framework is needed.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PAIRS: dict[str, str] = {}
"""File of jaxlm -> file of torchlm, where the names differ."""

ALONE = {
    "jaxlm/layers.py": "torch compiles a block by itself, where asked to; it has no loop to build",
    "jaxlm/functional.py": "a torch module holds its parameters; nothing splits and merges them",
    "torchlm/fast/norms.py": "eager autograd passes over memory at every step of a formula; XLA fuses them",
    "torchlm/fast/loss.py": "XLA needs no help to fuse head and loss; eager torch does",
    "torchlm/fast/parallel.py": "XLA splits a batch over devices, of which a CPU can have one per core",
    "jaxlm/fast/kernels.py": "torch's scaled_dot_product_attention chooses a kernel by itself",
    "torchlm/math_kernels.py": "jax has its own vector math, without MKL",
    "jaxlm/sharding.py": "GSPMD partitions one program for all devices, from the shardings of its arrays",
    "torchlm/sharding.py": "each process has its own part of the model, and says when the others' are needed",
    "torchlm/sharded_optim.py": "GSPMD partitions any optimizer; torch's own need whole matrices, or sums over parts",
    "torchlm/tensor_parallel.py": "GSPMD partitions the matmuls from the shardings of their kernels",
    "torchlm/baseline.py": "transformers has its models in torch only; jaxlm.evaluate runs this in another process",
}

THREEFRY = "jax has this generator; in torch it is written out"
MODULE = "a torch module holds its parameters and is changed in place, where jax passes them in and out"
AUTOCAST = "autocast gives matmuls their dtype from outside, so torch's own modules serve and take none"
DEVICES = "the file has the same role in both: the machine; its settings are each framework's own"
LOWERED = "jax compiles a whole step, for devices that need not be there; torch runs it"

DIFFERENCES = {
    "attention.py": {
        "attention": "torch's scaled_dot_product_attention takes heads as an axis and may go without a mask",
        "additive": "torch's kernel adds its mask to the scores; XLA fuses the choice",
        "by_head": "batch and heads are one axis in jax, two in torch's kernel",
    },
    "checkpoint.py": {
        **dict.fromkeys(("Unread", "save_unread"), "torch's files are plain safetensors, which parity writes itself"),
        "Stored.read": "Orbax restores NumPy's arrays, DCP its own tensors",
        "restore_state": "DCP reads into tensors that are there, Orbax returns arrays",
        "save_state": "the optimizer's state is a flat dict in torch, optax's own tree in jax",
        "save_parts": "Orbax's threads may talk to other processes; DCP's must not, beside training",
    },
    "decoding.py": {
        "Generator": MODULE,
        "cutoff_by_sorting": "XLA's sort is slow on a CPU, torch's is not: torch has only this way, in choose_tokens",
    },
    "dropout.py": dict.fromkeys(("seed_key", "fold_in", "bernoulli", "threefry"), THREEFRY)
    | dict.fromkeys(("Part", "MaskKey"), "GSPMD splits the masks of a sharded array by itself"),
    "fast/attention.py": {
        "attention_in_turns": "a loop inside one compiled program in jax; torch recomputes each block by itself",
        "windowed_attention": "torch computes the blocks of a window one by one",
        "block_attention": "a loop of its own in torch, which saves passes over memory that XLA fuses",
    },
    "fast/decoding.py": {
        "for_decoding": MODULE,
        "int8_for_decoding": MODULE,
        "cutoff_by_bits": "XLA's sort is slow on a CPU, torch's is not",
        "Merged": "XLA compiles the whole loop of decoding; in eager torch each matmul is a call",
        "MergedAttention": "XLA compiles the whole loop of decoding; in eager torch each matmul is a call",
        "MergedGatedMLP": "XLA compiles the whole loop of decoding; in eager torch each matmul is a call",
        "CallingDecoder": "torch's decoder uses the weight of its output head; jax's calls the head",
    },
    "fast/linear.py": {
        "linear": "a kernel is stored input × output in jax, output × input in torch",
        "laid_out": "XLA lays its arrays out itself, but for a transpose",
        **dict.fromkeys(("accumulated", "product"), "XLA gives 16-bit factors' sums in float32, and a rule for them"),
        "int8_linear": "XLA converts int8 values within its own matmul with one row",
        "keeps_int8": "XLA converts int8 values within its own matmul with one row",
        "emulated": "on a CPU, jax always decodes a bfloat16 model in float32",
        "onednn_linear": "torch's own choice of library for a matmul on a CPU is not the fastest; XLA has one",
    },
    "engine.py": {
        "dropout_key": "jax has one generator of masks, and folds its key in place",
        "TrainState": MODULE,
        "Engine.state": "jax's compiled steps hold it with layers stacked, where layers run in a loop",
        "train_step": MODULE,
        "eval_step": MODULE,
        "score": MODULE,
        "trained_parameters": MODULE,
        "initial_params": "in jax, a method of functional.Model",
        "state_shapes": LOWERED,
        "jit_train_step": LOWERED,
        "lower_train_step": LOWERED,
    },
    "documents.py": {"target_count": "GSPMD sums over all devices by itself"},
    "lora.py": {
        "Adapter.__init__": AUTOCAST,
        "AdaptedBlock.__init__": AUTOCAST,
    },
    "linear.py": {
        "Linear": AUTOCAST,
        "BiasedLinear": AUTOCAST,
    },
    "loss.py": {"chunk_count": "XLA's chunks are equal, for one loop; torch's are of a fixed size, in fast/loss.py"},
    "mlps.py": {
        "GatedMLP.__init__": AUTOCAST,
        "MLP.__init__": AUTOCAST,
        "make_mlp": AUTOCAST,
    },
    "cache.py": dict.fromkeys(("Cache", "write"), "changed in place in torch; jax lays keys out for its matmuls"),
    "model.py": {
        "Embedding": AUTOCAST,
        "Attention.__init__": AUTOCAST,
        "Block.__init__": AUTOCAST,
        "Decoder.__init__": "torch splits the positions from outside of the modules",
        "Block.forward": "a process has its part of the positions alone; a sharded array has all of them",
        "Decoder.embed": "a process has its part of the positions alone; a sharded array has all of them",
        "Decoder.autocast": AUTOCAST,
        "Decoder.head": "the loss takes the output head's weight itself",
    },
    "optim.py": {
        "clip_by_global_norm": MODULE,
        "over_layers": "only jax stacks the layers' values",
        "decay_mask": MODULE,
        "muon_mask": MODULE,
        "make_optimizer": MODULE,
        "apply_updates": MODULE,
    },
    "quantized.py": {
        "Int8Linear": "torch keeps int8 only where it has a matmul for it; XLA converts within any",
        "Int8BiasedLinear": "torch keeps int8 only where it has a matmul for it; XLA converts within any",
        "int8_decoder": MODULE,
    },
    "processes.py": {
        "sum_over_processes": "GSPMD adds these sums to a compiled step; in eager torch they are a call",
        "Group.__init__": "torch's store is another connection, for threads",
        "Group.together": "Orbax waits for all processes itself",
    },
    "device.py": {
        "set_up_jax": DEVICES,
        "set_up_torch": DEVICES,
        "choose_device": "jax chooses by itself",
        "check_precision": "jax has bfloat16 everywhere and no float16",
        "PRECISIONS": "jax has bfloat16 everywhere and no float16",
        "device_name": "jax names its devices",
        "make_scaler": "float16 exists in torch only",
        "to_device": "jax places arrays by their sharding",
    },
}
"""File -> qualified public name -> why the twins differ there."""

SAME = {
    "jaxlm": "torchlm",
    "JAX": "PyTorch",
    "Array": "Tensor",
    "jax.Tensor": "Tensor",
    "jnp.dtype": "torch.dtype",
    "jnp.float32": "torch.float32",
    "nnx.": "nn.",
    "__call__": "forward",
    "Orbax": "DCP",
    "arrays": "tensors",
    "array": "tensor",
}
"""What one framework calls otherwise than the other, and nothing more."""


def in_torch(text: str) -> str:
    for name, other in SAME.items():
        text = re.sub(rf"(?<!\w){re.escape(name)}", other, text)
    return text


def described(source: str) -> dict[str, str]:
    """Qualified name of every public definition, in order -> its arguments with types, and its summary."""
    found = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AnnAssign):
                continue
            if isinstance(child, ast.AnnAssign):
                found[prefix + ast.unparse(child.target)] = ast.unparse(child.annotation)
                continue
            if child.name.startswith("_") and child.name not in ("__init__", "__call__", "forward"):
                continue
            name = f"{prefix}{child.name}"
            summary = (ast.get_docstring(child) or "").partition("\n")[0]
            if isinstance(child, ast.FunctionDef):
                returns = f" -> {ast.unparse(child.returns)}" if child.returns else ""
                found[name] = f"({ast.unparse(child.args)}){returns}: {summary}"
            else:
                found[name] = f"({', '.join(map(ast.unparse, child.bases))}): {summary}"
                visit(child, name + ".")

    visit(ast.parse(source), "")
    return found


def differing(jax_source: str, torch_source: str) -> dict[str, tuple[str | None, str | None]]:
    """Names that are missing in one twin, described otherwise, or out of order -> both descriptions."""
    one, other = described(in_torch(jax_source)), described(torch_source)
    found = {n: (one.get(n), other.get(n)) for n in one | other if one.get(n) != other.get(n)}
    both = [n for n in one if n in other], [n for n in other if n in one]
    return found | {n: (f"before {m}", f"after {m}") for n, m in zip(*both, strict=True) if n != m}


def pairs() -> list[tuple[str, str]]:
    files = sorted(path.relative_to(ROOT / "jaxlm").as_posix() for path in (ROOT / "jaxlm").rglob("*.py"))
    return [(name, PAIRS.get(name, name)) for name in files if f"jaxlm/{name}" not in ALONE]


@pytest.mark.parametrize(("ours", "theirs"), pairs())
def test_the_twins_differ_only_where_it_is_said_why(ours: str, theirs: str):
    sources = [(ROOT / path).read_text(encoding="utf-8") for path in (f"jaxlm/{ours}", f"torchlm/{theirs}")]
    found = differing(*sources)
    expected = DIFFERENCES.get(ours, {})
    unexplained = {n: d for n, d in found.items() if n not in expected and n.partition(".")[0] not in expected}
    assert unexplained == {}
    stale = [n for n in expected if not any(m == n or m.startswith(n + ".") for m in found)]
    assert stale == [], "listed as different, and the same"


def test_no_file_of_either_twin_is_forgotten():
    files = {p.relative_to(ROOT / "torchlm").as_posix() for p in (ROOT / "torchlm").rglob("*.py")}
    assert files == {theirs for _, theirs in pairs()} | {n for n in files if f"torchlm/{n}" in ALONE}
    assert all((ROOT / path).exists() for path in ALONE)


MODEL = '''
class RMSNorm(nn.Module):
    """Norm."""
    def forward(self, x: Float[Tensor, "B T D"], eps: float = 1e-5) -> Tensor:
        """Do it."""
def rotate(x: Tensor): ...
'''


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("eps: float = 1e-5", "eps: float = 1e-6", "RMSNorm.forward"),
        ("eps: float", "epsilon: float", "RMSNorm.forward"),
        ('"B T D"', '"B D T"', "RMSNorm.forward"),
        ("Do it.", "Do that.", "RMSNorm.forward"),
        ("Norm.", "Normalise.", "RMSNorm"),
        ("def rotate", "def turn", "rotate"),
    ],
)
def test_a_difference_is_seen(old: str, new: str, name: str):
    assert differing(MODEL, MODEL) == {}
    assert name in differing(MODEL, MODEL.replace(old, new))


def test_another_order_is_seen():
    head, _, tail = MODEL.partition("def rotate")
    assert differing(MODEL, f"def rotate{tail}{head}") != {}


def test_jax_words_are_translated():
    jax = "class A(nnx.Module):\n    def __call__(self, x: Float[Array, 'B']) -> jax.Array: ..."
    torch = "class A(nn.Module):\n    def forward(self, x: Float[Tensor, 'B']) -> Tensor: ..."
    assert differing(jax, torch) == {}
