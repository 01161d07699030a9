"""Compare pairs of `flax_models.py` in an environment that holds transformers 4.56.2, JAX and torch.

    python -m tests.parity.ports.run_flax_models gpt2 llama --dtype float64 float32 --out reports.jsonl

Tests make that environment, since this version of transformers needs older tokenizers than this project.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.parity.ports.flax_models import PAIRS, Pair, drawn, names_of

STEPS, RATE = 12, 1e-3


def built_flax(pair: Pair, dtype: str) -> tuple[Any, dict[str, Any]]:
    """Return the Flax model that computes in `dtype`, and its parameters."""
    import jax
    import transformers
    from flax.traverse_util import flatten_dict, unflatten_dict

    jax.config.update("jax_enable_x64", True)  # else a float64 module warns as it is made
    if pair.name.startswith("T5"):
        _restore_clip()
    config = getattr(transformers, pair.config)(**pair.options)
    model = getattr(transformers, f"Flax{pair.name}")(config, seed=0, dtype=jax.numpy.dtype(dtype))
    flat = {path: np.asarray(value) for path, value in flatten_dict(model.params, sep=".").items()}
    return model, unflatten_dict(drawn(flat), sep=".")


def _restore_clip() -> None:
    """Give T5 the `jnp.clip(x, a_max=…)` that it calls, a spelling that jax has removed."""
    import jax.numpy as jnp
    from transformers.models.t5 import modeling_flax_t5

    modeling_flax_t5.jnp = SimpleNamespace(**vars(jnp) | {"clip": lambda x, a_max: jnp.minimum(x, a_max)})


def built_torch(pair: Pair) -> Any:
    """Return the torch module, with weights of its own."""
    import transformers

    options = {**pair.options, **pair.torch_options}
    return getattr(transformers, pair.name)(getattr(transformers, pair.config)(**options))


def flax_function(pair: Pair, model: Any) -> Callable[..., Any]:
    """Return `function(params, batch)` with the output and the loss; hidden states are tapped."""
    import jax
    import jax.numpy as jnp

    def run(params: Any, batch: Any) -> dict[str, Any]:
        inputs = {name: value for name, value in batch.items() if name != "targets"}
        outputs = model(**inputs, params=params, output_hidden_states=True)
        logits = _tapped(pair, outputs)[pair.outputs]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)
        return {pair.outputs: logits, "loss": -chosen.mean()}

    run.__name__ = f"Flax{pair.name}"
    return run


def torch_call(pair: Pair, module: Any, batch: Any) -> dict[str, Any]:
    """Return the output and the loss; hidden states are tapped."""
    from torch.nn.functional import cross_entropy

    for name in pair.frozen:
        module.get_parameter(name).requires_grad_(False)
    inputs = {name: value for name, value in batch.items() if name != "targets"}
    with _default_dtype(module.dtype):  # CLIP makes a mask of it that holds the least value of the module's dtype
        logits = _tapped(pair, module(**inputs, output_hidden_states=True))[pair.outputs]
    return {
        pair.outputs: logits,
        "loss": cross_entropy(logits.flatten(0, -2), batch["targets"].flatten()),
    }


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _tapped(pair: Pair, outputs: Any) -> Any:
    """Return a model's outputs; tap its hidden states, those of two towers under their names."""
    from parity import tap

    found = {key: value for key, value in outputs.items() if key.endswith("hidden_states") and value is not None}
    for part in ("vision_model_output", "text_model_output"):
        if part in list(outputs):
            found |= {f"{part} {key}": x for key, x in outputs[part].items() if key == "hidden_states"}
    for key, states in sorted(found.items(), key=lambda item: item[0].startswith("decoder")):  # in order of computation
        for number, state in enumerate(states):
            if (name := f"{key} {number}") not in pair.ignored:
                tap(name, state)
    return outputs


def optimizers_of(pair: Pair, params: Any, names: Mapping[str, Any], module: Any) -> tuple[Any, Any]:
    """Return AdamW for both; what is a buffer or a constant in torch is not trained in JAX."""
    import jax
    import optax

    trained = {name for name, parameter in module.named_parameters() if name not in pair.frozen}

    def stays(path: Any, _: Any) -> bool:
        name = names[jax.tree_util.keystr(path, simple=True, separator=".")]
        return (name if isinstance(name, str) else name[0]) not in trained

    frozen = jax.tree_util.tree_map_with_path(stays, params)
    adamw = optax.adamw(RATE, weight_decay=pair.decay)
    return optax.chain(adamw, optax.masked(optax.set_to_zero(), frozen)), partial(_adamw, pair)


def _adamw(pair: Pair, parameters: Any) -> Any:
    import torch

    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=pair.decay)


def differing_names(pair: Pair) -> tuple[list[str], list[str]]:
    """Return the torch parameters that `names_of` gives other values than transformers' own conversion from Flax.

    Those that it leaves at their first values come second.
    """
    from flax.traverse_util import flatten_dict
    from transformers.modeling_flax_pytorch_utils import load_flax_weights_in_pytorch_model

    from parity.mapping import resolve

    _, params = built_flax(pair, "float32")
    flat, module = flatten_dict(params, sep="."), built_torch(pair)
    shapes = [{n: tuple(t.shape) for n, t in each} for each in (module.named_parameters(), module.named_buffers())]
    rows = resolve(names_of(flat, module), {n: v.shape for n, v in flat.items()}, *shapes, only_torch=pair.only_torch)
    ours = {name: value for row in rows for name, value in row.to_torch(flat).items()}
    first = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
    theirs = load_flax_weights_in_pytorch_model(module, params).state_dict()
    other = [name for name, value in ours.items() if not np.array_equal(value, theirs[name].numpy())]
    left = [name for name in other if np.array_equal(first[name], theirs[name].numpy())]
    return [name for name in other if name not in left], left


def changed(pair: Pair, how: str) -> Pair:
    """Return the pair `same`, without its deviation; with a `fault` in torch besides; or as it `is`."""
    found = pair.deviation
    if how != "is" and found is not None:
        pair = replace(pair, inputs=found.inputs or pair.inputs, torch_options=found.options, ignored=found.states)
    return replace(pair, torch_options={**pair.torch_options, **pair.fault}) if how == "fault" else pair


def compared(pair: Pair, dtype: str, flax_dtype: str, training: bool = True) -> Any:
    """Return the report of a pair.

    Args:
        pair: the two classes.
        dtype: of the comparison.
        flax_dtype: that the Flax module is told to compute in.
        training: whether updates and curves are compared too.
    """
    from flax.traverse_util import flatten_dict

    from parity import compare

    model, params = built_flax(pair, flax_dtype)
    module = built_torch(pair)
    names = names_of(flatten_dict(params, sep="."), module)
    rng = np.random.default_rng(1)
    inputs = pair.inputs(rng)
    steps: dict[str, Any] = {
        "optimizers": optimizers_of(pair, params, names, module),
        "batches": [(pair.inputs(rng),) for _ in range(STEPS)],
    }
    return compare(
        flax_function(pair, model),
        module,
        inputs,
        params=params,
        names=names,
        losses=(loss_of, loss_of),
        dtype=dtype,  # type: ignore[arg-type]
        only_torch=pair.only_torch,
        outputs=[pair.outputs],
        call_module=partial(torch_call, pair),
        **(steps if training else {}),
    )


def recorded(pair: Pair, dtype: str, path: Path, like: Path | None) -> None:
    """Record the Flax side of a pair, or the torch side like it, which may be in another environment.

    Args:
        pair: the two classes.
        dtype: of the recording.
        path: of the file to write.
        like: the recording of the Flax side; None to make that.
    """
    from parity import record
    from parity.ports.recording import load

    module = built_torch(pair)
    if like is not None:
        names = names_of(load(like).weights, module)
        own = {"optimizer": partial(_adamw, pair), "call": partial(torch_call, pair), "only_torch": pair.only_torch}
        record(path, module, like=like, names=names, loss=loss_of, outputs=[pair.outputs], **own)  # type: ignore[arg-type]
        return
    from flax.traverse_util import flatten_dict

    model, params = built_flax(pair, dtype)
    rng = np.random.default_rng(1)
    inputs = pair.inputs(rng)
    optimizer, _ = optimizers_of(pair, params, names_of(flatten_dict(params, sep="."), module), module)
    record(
        path,
        flax_function(pair, model),
        inputs,
        params=params,
        loss=loss_of,
        dtype=dtype,  # type: ignore[arg-type]
        outputs=[pair.outputs],
        optimizer=optimizer,
        batches=[(pair.inputs(rng),) for _ in range(STEPS)],
    )


def loss_of(outputs: Mapping[str, Any]) -> Any:
    """Return the loss that both functions compute from their batch."""
    return outputs["loss"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pairs that are named, and write a line of JSON for each report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", metavar="PAIR", help=f"all by default: {', '.join(PAIRS)}")
    parser.add_argument("--dtype", nargs="+", default=["float64", "float32"])
    parser.add_argument("--flax-dtype", help="what the Flax modules compute in; that of the comparison by default")
    parser.add_argument("--how", nargs="+", choices=["is", "same", "fault"], default=["is"], help=changed.__doc__)
    parser.add_argument("--names", action="store_true", help="compare the names with transformers' conversion instead")
    parser.add_argument("--record", type=Path, help="record the Flax side to this file instead")
    parser.add_argument("--like", type=Path, help="recording of the Flax side: record the torch side like it")
    parser.add_argument("--out", type=Path, help="file of results, a line of JSON for each")
    args = parser.parse_args(argv)
    for name in args.pairs or PAIRS:
        if args.names:
            line = dict(zip(("pair", "differing", "left"), (name, *differing_names(PAIRS[name])), strict=True))
            _write(args.out, line)
            print(line)
            continue
        if args.record:
            recorded(changed(PAIRS[name], args.how[0]), args.dtype[0], args.record, args.like)
            continue
        for how, dtype in product(args.how, args.dtype):
            compute = args.flax_dtype or dtype
            report = compared(changed(PAIRS[name], how), dtype, compute, training=how != "fault")
            facts = {"pair": name, "how": how, "dtype": dtype, "flax_dtype": compute}
            print(f"{facts}\n{report}", *(f"      {r.what}: {r.note}" for r in report.results if r.note), sep="\n")
            _write(args.out, facts | report.to_dict())
    return 0


def _write(path: Path | None, line: Mapping[str, Any]) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
