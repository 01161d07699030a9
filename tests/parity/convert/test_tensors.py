"""Arrays that are read when asked for: one at a time, in blocks, and converted as all together are."""

import ml_dtypes
import numpy as np
import pytest

from lmcore.config import ModelConfig
from lmcore.errors import UserError
from parity.convert import tensors
from parity.convert.names import Side, convert_names, table
from parity.convert.tensors import Stored, Tensors, convert_tensors, finite, row_blocks, watched

MODEL = ModelConfig(vocab_size=30, dim=25, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=7)


def arrays(side: Side) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {row.name(side): rng.standard_normal(row.shape_in(side)) for row in table(MODEL)}


@pytest.mark.parametrize("source", ["jax", "torch", "hf"])
@pytest.mark.parametrize("target", ["jax", "torch", "hf"])
def test_each_is_converted_as_all_together_are(source: Side, target: Side):
    expected = convert_names(arrays(source), MODEL, source, target)
    found = convert_tensors(Tensors.of(arrays(source)), MODEL, source, target)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found.stored[name].shape == array.shape
        assert np.array_equal(found[name], array)


def test_nothing_is_read_before_it_is_asked_for():
    read: list[str] = []

    def stored(name: str, array: np.ndarray) -> Stored:
        def now() -> np.ndarray:
            read.append(name)
            return array

        return Stored(array.shape, array.dtype, now)

    opened = Tensors({name: stored(name, array) for name, array in arrays("jax").items()})
    converted = convert_tensors(opened, MODEL, "jax", "torch")
    assert "norm.weight" in converted
    assert len(converted) == len(opened)
    assert set(read) <= {"embed_tokens.weight"}, "the tests' type checker looks at the first"
    read.clear()
    _ = converted["layers.1.mlp.up_proj.weight"]
    assert read == ["layers.1.mlp.up_proj.kernel"]


def test_names_and_shapes_are_checked_together():
    wrong = arrays("jax")
    wrong["norm.weight"] = np.ones(3)
    del wrong["layers.0.mlp.up_proj.kernel"]
    with pytest.raises(UserError, match=r"up_proj.kernel \[25, 7\] is missing.*norm.weight is \[3\], expected \[25\]"):
        convert_tensors(Tensors.of(wrong), MODEL, "jax", "torch")


@pytest.mark.parametrize("shape", [(), (5,), (7, 3), (1, 9), (4, 3, 2), (0, 3)])
def test_blocks_are_the_array_in_order(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    array = np.random.default_rng(0).standard_normal(shape)
    for layout in (array, array.T.copy().T):
        for size in (1, 60, 10**6):
            monkeypatch.setattr(tensors, "BLOCK_BYTES", size)
            blocks = list(row_blocks(layout))
            assert b"".join(block.tobytes() for block in blocks) == array.tobytes()
            assert all(block.flags.c_contiguous for block in blocks)
            assert size > 60 or len(shape) < 2 or len(blocks) >= min(2, shape[0])


def test_what_is_not_finite_is_named_once_when_it_is_read():
    broken: list[str] = []
    values = {"a": np.ones(3), "b": np.array([1, np.inf]), "c": np.array([np.nan], ml_dtypes.bfloat16)}
    seen = watched(Tensors.of(values), broken)
    assert broken == []
    for _ in range(2):
        assert {name: array.tobytes() for name, array in seen.items()} == {n: a.tobytes() for n, a in values.items()}
    assert broken == ["b", "c"]
    assert finite(np.full(2, 1e300)), "float64 is not judged in float32"
