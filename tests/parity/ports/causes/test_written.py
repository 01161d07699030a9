"""The steps that are written out are torch's where the options are torch's."""

import pytest
import torch

from parity.ports.causes.written import Written

KINDS = [
    (torch.optim.Adam, {"weight_decay": 0.1}),
    (torch.optim.Adam, {"amsgrad": True, "maximize": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.RMSprop, {"momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.RMSprop, {"centered": True}),
    (torch.optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.2}),
]


def steps(make, options) -> list[torch.Tensor]:
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
    optimizer = make([parameter], options)
    found = []
    for factor in (1.0, -0.5, 2.0):
        parameter.grad = factor * torch.linspace(0.3, 2, 6, dtype=torch.float64)
        optimizer.step()
        moments = {k: v for k, v in optimizer.state[parameter].items() if k != "step"}
        found += [parameter.detach().clone(), *(moments[key].clone() for key in sorted(moments))]
    return found


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_step_is_torchs(kind: type, options: dict):
    def written(parameters, options):
        return Written(kind(parameters, **options))

    theirs = steps(lambda parameters, options: kind(parameters, **options), options)
    ours = steps(written, options)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)
    off = steps(written, options | {"eps": 1e-3})
    assert not torch.allclose(off[-len(off) // 3], theirs[-len(off) // 3], rtol=1e-9)
