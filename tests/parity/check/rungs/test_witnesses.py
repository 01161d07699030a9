"""Rung 9's further lines: a witness with our logits passes, one that is off fails, and what has none says why."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from lmcore.errors import UserError
from parity.backends.base import Pair
from parity.check.rungs.base import Options
from parity.check.rungs.witnesses import further_implementations, witnesses
from parity.check.witnesses import Witness
from parity.convert.huggingface import read_folder

ONE = Options(witnesses=("mlx",))


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], None]:
    """Lets a function take the place of the witness, which counts as installed."""

    def replaced(logits: Callable) -> None:
        monkeypatch.setattr(Witness, "missing", "")
        monkeypatch.setattr(Witness, "logits", lambda self, folder, tokens: logits(folder, tokens))

    return replaced


def ours(pair: Pair, factor: float = 1.0) -> Callable:
    def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
        read = read_folder(folder)
        assert read.tokenizer is not None
        assert {str(each.dtype) for each in read.weights.stored.values()} == {"float32"}
        return (pair.loaded(pair.port).logits(tokens) * factor).astype(np.float32)

    return logits


@pytest.mark.parametrize(("vocab_size", "dtype"), [(61, "float32"), (300, "float64")])
def test_equal_logits_pass_and_others_fail(
    vocab_size: int, dtype: str, tiny_pair: Callable[..., Pair], answer: Callable[[Callable], None]
):
    pair = tiny_pair(model={"vocab_size": vocab_size}, train={"precision": dtype})
    answer(ours(pair))
    (line,) = witnesses(pair, ONE)
    assert (line.verdict, line.rung, line.limit, line.what[:11]) == ("pass", 9, "1e-05 rel", "mlx, logits")
    answer(ours(pair, 1 + 2e-5))
    (line,) = witnesses(pair, ONE)
    assert (line.verdict, round(line.max_rel or 0, 6)) == ("FAIL", 2e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": {"precision": "bfloat16"}}, "witnesses compute in float32"),
        ({"model": {"position": "none"}}, "model.position: found 'none', a Llama has only 'rope'"),
        ({"model": {"dim": 13, "head_dim": 4}}, "model.dim: found 13"),
    ],
)
def test_what_has_no_llama_is_left_out(
    changes: dict, reason: str, tiny_pair: Callable[..., Pair], answer: Callable[[Callable], None]
):
    answer(lambda folder, tokens: pytest.fail("asked"))
    (line,) = witnesses(tiny_pair(**changes), ONE)
    assert line.verdict == "skipped"
    assert line.note.startswith(reason)


def test_what_a_witness_refuses_or_lacks_is_said(tiny_pair: Callable[..., Pair], answer: Callable[[Callable], None]):
    pair = tiny_pair()
    with mock.patch("importlib.util.find_spec", return_value=None):
        (line,) = witnesses(pair, ONE)
    assert (line.verdict, line.note) == ("skipped", "mlx, mlx_lm is not installed: pip install 'twinlm[witness]'")

    def raising(error: Exception) -> Callable:
        def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
            raise error

        return logits

    for error, note in (
        (UserError("not this one"), "not this one"),
        (RuntimeError("no\nmemory"), "cannot compute: RuntimeError: no memory"),
    ):
        answer(raising(error))
        (line,) = witnesses(pair, ONE)
        assert (line.verdict, line.note) == ("skipped", note)


def test_the_rung_has_transformers_first_and_no_witness_unless_asked(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair(train={"precision": "bfloat16"})
    assert [line.what.split(",")[0] for line in further_implementations(pair, Options())] == ["transformers"]
    names = [line.what.split(",")[0] for line in further_implementations(pair, ONE)]
    assert names == ["transformers", "mlx"]
