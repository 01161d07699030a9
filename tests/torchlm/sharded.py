"""A program of several processes: trains configs on meshes beside one process, and prints how far the two are apart.

`torchrun … -m tests.torchlm.sharded CASES` takes a list in JSON. A case is a dictionary of the fields that its config
changes, by group, and perhaps of a folder: to `restore` the state from at the beginning, or to `save` it to, beside its
`whole` tensors, as process 0 has gathered them.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import Config, ModelConfig, OptimConfig, ParallelConfig, SampleConfig, TrainConfig
from tests.checking import check_packages
from tests.launching import by_torchrun

__all__ = ["config_of", "measured"]

MODEL = ModelConfig(
    vocab_size=62, dim=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, ffn_dim=16, max_seq_len=8,
    tie_embeddings=False,
)  # fmt: skip
TRAIN = TrainConfig(batch_size=8, steps=10, device="cpu", precision="float64", grad_accum=2, cpu_devices=1)
STEPS, LR = 3, 1e-2


def config_of(case: dict[str, Any]) -> Config:
    """Return the config of a case."""
    groups: dict[str, Any] = {"model": MODEL, "train": TRAIN, "optim": OptimConfig(), "parallel": ParallelConfig()}
    return Config(**{name: replace(group, **case.get(name, {})) for name, group in groups.items()})


def measured(cases: list[dict[str, Any]], folder: Path, processes: int, checked: bool = True) -> list[dict[str, float]]:
    """Run the program, with or without checks of shapes and types; return what it prints, of each case."""
    arguments = ["-m", "tests.torchlm.sharded", json.dumps(cases), *(["unchecked"] if not checked else [])]
    return json.loads(by_torchrun(arguments, folder, processes))


def batch_of(config: Config, step: int) -> np.ndarray:
    """Return token ids."""
    shape = config.train.batch_size, config.train.seq_len + 1
    return np.random.default_rng(step).integers(0, config.model.vocab_size, shape, dtype=np.int32)


def own_rows(batch: np.ndarray, engine: Any) -> np.ndarray:
    """Return this process's part of every micro-batch."""
    index, count = engine.shard
    micro = batch.reshape(engine.config.train.grad_accum, count, -1, batch.shape[1])
    return np.ascontiguousarray(micro[:, index].reshape(-1, batch.shape[1]))


def whole(tensor: Any) -> Any:
    """Return a DTensor as a tensor; others are one."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def largest_difference(one: Any, many: Any) -> dict[str, float]:
    """Return how far this process's parts of the parameters and of the optimizer's state are from those of one."""

    def furthest(expected: dict[str, Any], found: dict[str, Any]) -> float:
        assert expected.keys() == found.keys()
        return max(float((expected[name] - found[name]).abs().max()) for name in expected)

    sharding = many.sharding
    params = {name: sharding.own(p, sharding.layouts[name]) for name, p in one.state.params.items()}
    wholes = many.sharding.wholes(many._optimizer_tensors())
    moments = {name: whole(t) for name, t in wholes.items()}
    return {"params": furthest(params, many.state.params), "moments": furthest(one._optimizer_tensors(), moments)}


def compare(case: dict[str, Any], processes: Any) -> dict[str, float]:
    """Train a config on its mesh and in one process; return the largest differences."""
    import torch

    from torchlm.checkpoint import save_state
    from torchlm.engine import Engine

    config = config_of(case)
    one, many = Engine(replace(config, parallel=ParallelConfig())), Engine(config, processes)
    for engine in (one, many):
        engine.restore(Path(case["restore"]) / "state") if "restore" in case else engine.init()
    found = {"first": max(largest_difference(one, many).values())}
    start, losses, norms = {name: p.clone() for name, p in one.state.params.items()}, [0.0], [0.0]
    for step in range(case.get("steps", STEPS)):
        batch = batch_of(config, step)
        expected, metrics = one.train_step(batch, LR), many.train_step(own_rows(batch, many), LR)
        losses.append(abs(float(expected["loss"]) - float(metrics["loss"])))
        norms.append(abs(float(expected["grad_norm"]) - float(metrics["grad_norm"])))
        if step == 0:  # evaluated between two steps
            loss, count = one.eval_step(batch[:4, :-1], batch[:4, 1:])
            index, parts = many.shard
            rows = batch[:4].reshape(parts, -1, batch.shape[1])[index]
            own_loss, own_count = many.eval_step(rows[:, :-1].copy(), rows[:, 1:].copy())
            found["valid"] = abs(float(loss) - float(own_loss)) + abs(int(count) - int(own_count))
    found |= {"loss": max(losses), "grad_norm": max(norms)} | largest_difference(one, many)
    found["still"] = -max(float((p - start[name]).abs().max()) for name, p in one.state.params.items())
    prompt, pads = np.arange(6, dtype=np.int32).reshape(2, 3), np.zeros(2, np.int32)
    generator = many.generator(SampleConfig())
    found["logits"] = 0.0
    if processes.rank == 0:
        plain = one.generator(SampleConfig())
        logits = [g.start(prompt, pads, 8).logits for g in (plain, generator)]
        found["logits"] = float((logits[0] - logits[1]).abs().max())
    if "save" in case:
        folder = Path(case["save"])
        if processes.rank == 0:
            folder.mkdir()
        processes.largest(0)
        finish = many.save(folder / "state")
        wholes = [many.sharding.wholes(t) for t in (many.state.params, many._optimizer_tensors())]
        gathered = [{name: whole(t).clone() for name, t in tensors.items()} for tensors in wholes]
        for p in many.state.params.values():
            p.zero_()  # what was saved is a copy
        finish()
        if processes.rank == 0:
            save_state(folder / "whole", *gathered)()
    assert many.is_finite()
    if case.get("poisoned"):
        if processes.rank == 1:
            next(iter(many.state.params.values())).view(-1)[0] = torch.nan
        assert not many.is_finite()
    return {name: largest(value) for name, value in found.items()}


def largest(value: float) -> float:
    """Return the largest of a number over all processes."""
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def main() -> None:
    """Print the differences of all cases."""
    from torchlm.processes import joined

    with joined(config_of({})) as processes:
        found = [compare(case, processes) for case in json.loads(sys.argv[1])]
        if processes.rank == 0:
            print(json.dumps(found))


if __name__ == "__main__":
    if "unchecked" not in sys.argv:  # torch's compiler does not follow the checks
        check_packages("torchlm")
    main()
