"""Training speed of torchlm beside transformers' Llama of the same shape, taking turns step by step in one process.

    python benchmarks/torch_train.py --precision bfloat16 --compile

Turns make the ratio hold on a machine that others use too; `--cpu_time` counts processor time instead of time on the
wall, which says most with OMP_NUM_THREADS=1.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmcore.config import Config, ModelConfig, OptimConfig, TrainConfig
from torchlm.engine import Engine

MODEL = ModelConfig(vocab_size=4096, dim=288, n_layers=6, n_heads=6, ffn_dim=768, max_seq_len=256)


def ours(train: TrainConfig) -> Callable[[np.ndarray], float]:
    """One step of torchlm, waited for."""
    engine = Engine(Config(model=MODEL, train=train))
    engine.init()
    return lambda batch: float(engine.train_step(batch, 1e-3)["loss"])


def theirs(train: TrainConfig, device: torch.device) -> Callable[[np.ndarray], float]:
    """One step of transformers' Llama with the same precision, clip and fused AdamW, waited for."""
    config = LlamaConfig(
        vocab_size=MODEL.vocab_size,
        hidden_size=MODEL.dim,
        intermediate_size=MODEL.ffn_dim,
        num_hidden_layers=MODEL.n_layers,
        num_attention_heads=MODEL.n_heads,
        max_position_embeddings=MODEL.max_seq_len,
        tie_word_embeddings=MODEL.tie_embeddings,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).to(device)
    assert sum(p.numel() for p in model.parameters()) == Engine(Config(model=MODEL, train=train)).parameter_count
    optim = OptimConfig()
    betas = optim.beta1, optim.beta2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=betas, weight_decay=optim.weight_decay, fused=True)
    forward = torch.compile(model, dynamic=False) if train.compile else model

    def step(batch: np.ndarray) -> float:
        tokens = torch.from_numpy(batch).long().to(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
            logits = forward(tokens[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    """Print tokens per second of both, medians, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--cpu_time", action="store_true")
    args = parser.parse_args()
    train = TrainConfig(batch_size=args.batch_size, precision=args.precision, compile=args.compile)
    mine = ours(train)
    steps = {
        "torchlm": mine,
        "transformers": theirs(train, torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }
    clock = time.process_time if args.cpu_time else time.perf_counter
    rng = np.random.default_rng(0)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.steps + 2):  # the first two warm up and compile
        batch = rng.integers(0, MODEL.vocab_size, (args.batch_size, MODEL.max_seq_len + 1), dtype=np.int32)
        for name, step in steps.items():
            begin = clock()
            step(batch)
            taken[name].append(clock() - begin)
    rates = {n: args.batch_size * MODEL.max_seq_len / statistics.median(seconds[2:]) for n, seconds in taken.items()}
    settings = f"{args.precision}{', compiled' if args.compile else ''}, {torch.get_num_threads()} threads"
    print(f"{settings}: " + ", ".join(f"{n} {rate:,.0f} tokens/s" for n, rate in rates.items()), end="")
    print(f", ratio {rates['torchlm'] / rates['transformers']:.3f}")


if __name__ == "__main__":
    main()
