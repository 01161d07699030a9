"""Witnesses are chosen by name: what is unknown or not installed is one line, and `all` takes what there is."""

from unittest import mock

import pytest

from lmcore.errors import UserError
from parity.check.witnesses import WITNESSES, choose


def test_names_are_chosen_in_order_and_once():
    with mock.patch("importlib.util.find_spec", return_value=True):
        assert choose([]) == ()
        assert choose(["llama.cpp", "mlx", "llama.cpp"]) == ("llama.cpp", "mlx")


def test_all_are_those_of_the_table_installed_or_not():
    with mock.patch("importlib.util.find_spec", return_value=None):
        assert choose(["all"]) == choose(["all", "all"]) == tuple(WITNESSES)


def test_a_named_one_must_be_there():
    with pytest.raises(UserError, match=r"^--witness: found 'vllm', expected all, or any of ctranslate2, mlx, onnx"):
        choose(["vllm"])
    missing = r"^--witness: mlx needs mlx, mlx_lm, not installed here; pip install 'twinlm\[witness\]'"
    with mock.patch("importlib.util.find_spec", return_value=None), pytest.raises(UserError, match=missing):
        choose(["mlx"])
    with pytest.raises(UserError, match="found 'vllm'"):
        choose(["all", "vllm"])
