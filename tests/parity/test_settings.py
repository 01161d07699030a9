"""What a comparison sets for the whole process is put back, whatever happens meanwhile."""

import jax
import pytest
import torch

from parity.settings import jax_settings, torch_settings


def test_settings_are_put_back():
    before = jax.config.jax_enable_x64, torch.get_float32_matmul_precision()

    def fail() -> None:
        with jax_settings(), torch_settings():
            jax.config.update("jax_enable_x64", not before[0])
            torch.set_float32_matmul_precision("medium")
            torch.use_deterministic_algorithms(True)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert (jax.config.jax_enable_x64, torch.get_float32_matmul_precision()) == before
    assert not torch.are_deterministic_algorithms_enabled()
