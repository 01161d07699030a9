"""The state on a device is exact for every optimizer; what is estimated grows and shrinks with what it depends on."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from jaxlm.engine import Engine
from lmcore.config import Config, OptimConfig
from lmcore.config.cli import parse
from lmcore.optim.table import OPTIMIZERS
from lmcore.run.mesh import MeshShape
from lmcore.run.opening import with_vocabulary
from parity.plan.memory import device_memory
from parity.plan.shapes import Shapes, shapes_of


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mesh", [MeshShape(2, 1, 1), MeshShape(1, 2, 1), MeshShape(1, 1, 2)], ids=str)
def test_the_state_is_what_a_device_holds(name: Any, mesh: MeshShape, tiny: Config, changed: Any) -> None:
    config = replace(changed(tiny, mesh), optim=OptimConfig(name=name))
    engine = Engine(config)
    engine.init()
    device = engine.mesh.devices.flat[1]
    held = [shard for leaf in jax.tree.leaves(engine.held) for shard in leaf.addressable_shards]
    memory = device_memory(config, shapes_of(config), mesh)
    assert memory.state == sum(shard.data.nbytes for shard in held if shard.device == device)
    whole = device_memory(config, shapes_of(config), MeshShape())
    assert (memory.state < whole.state) == mesh.sharded


def test_what_the_estimate_depends_on(tiny: Config, shapes: Shapes, changed: Any) -> None:
    def needed(mesh: MeshShape = MeshShape(), **train: Any) -> Any:  # noqa: B008
        return device_memory(changed(tiny, mesh, **train), shapes, mesh)

    plain = needed()
    assert needed(remat=True).activations < plain.activations
    assert needed(grad_accum=4).activations == plain.activations // 4
    assert needed(grad_accum=4).gradients == 2 * plain.gradients
    assert needed(MeshShape(data=4)).activations == plain.activations // 4
    assert needed(MeshShape(tensor=2)).activations < plain.activations
    assert needed(MeshShape(tensor=2), sequence=True, remat=True).activations == needed(remat=True).activations // 2
    assert plain.total == plain.state + plain.temporaries
    np.testing.assert_allclose(needed(MeshShape(fsdp=4)).gradients, plain.gradients / 4, rtol=0.01)


TORCH = """
import sys
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from lmcore.config.cli import parse
from lmcore.run.mesh import MeshShape
from lmcore.run.opening import with_vocabulary
from lmcore.run.opening import with_vocabulary
from torchlm.model import Decoder
from torchlm.sharding import Sharding

mesh = MeshShape(*map(int, sys.argv[1].split(",")))
config = with_vocabulary(parse(sys.argv[2:], prog="", description=""), 1000)
torch.distributed.init_process_group("fake", rank=0, world_size=mesh.size, store=FakeStore())
with torch.device("meta"):
    model = Decoder(config.model, torch.float32)
sharding = Sharding(mesh, torch.device("cpu"))
sharding.apply(model, config)
print(sum(part.nbytes for part in sharding.own_parts(model).values()))
"""


@pytest.mark.parametrize("sizes", ["4,64,1", "1,8,4"])
def test_torch_holds_as_many_parameters(sizes: str) -> None:
    options = ["--model.dim", "64", "--model.n_heads", "4", "--model.tie_embeddings", "false", "--model.bias", "true"]
    command = [sys.executable, "-W", "ignore", "-c", TORCH, sizes, *options]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    config = with_vocabulary(parse(options, prog="", description=""), 1000)
    memory = device_memory(config, shapes_of(config), MeshShape(*map(int, sizes.split(","))))
    assert int(ended.stdout) == memory.parameters
