"""What all implementations share: the FLOPs of an update, and what a device is asked."""

from dataclasses import replace

import torch

from lmcore.config import Config
from parity.bench.base import step_flops, torch_device_bytes, wait_for_torch


def test_the_flops_of_an_update_are_those_of_all_its_tokens(config: Config):
    weights = 2 * (20 * 20 * 2 + 20 * 10 * 2 + 3 * 20 * 64) + 101 * 20  # two blocks and the tied head
    attention = 2 * 3 * (2 * 2 * 20) * 24 / 2  # forward and twice that backward, half of the keys on average
    assert step_flops(config) == (6 * weights + attention) * 6 * 24
    accumulated = replace(config, train=replace(config.train, batch_size=12, grad_accum=4))
    assert step_flops(accumulated) == 2 * step_flops(config)


def test_a_cpu_has_nothing_to_wait_for_and_no_memory_of_its_own():
    device = torch.device("cpu")
    wait_for_torch(device)
    assert torch_device_bytes(device) is None
