"""Gemma 2, as transformers makes it, is the same model in both twins."""

from pathlib import Path

from tests.parity.convert.families.comparing import SIZES, assert_same_model

FIELDS = {
    "head_dim": 8,
    "query_pre_attn_scalar": 5,
    "sliding_window": 5,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}


def test_it_is_the_same_model_here_and_back(tmp_path: Path):
    assert_same_model("gemma2", SIZES | FIELDS, tmp_path)
