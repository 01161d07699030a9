"""One config and seed: jaxlm and torchlm give the same losses, gradients' norms and texts, to within rounding.

Tolerances, absolute, on losses near 6 nats: the first loss within 1e-6, ten within 1e-5, a hundred within twice the
noise floor, which is how far one framework strays from itself when every initial weight is moved by one ulp.
"""

from dataclasses import replace

import numpy as np
import pytest

from jaxlm.engine import Engine as JaxEngine
from lmcore.config import Config, DataConfig, ModelConfig, OptimConfig, SampleConfig, TokenizerConfig, TrainConfig
from lmcore.data.batches import Batches
from lmcore.data.prepare import prepare
from lmcore.generate.prompting import write_tokens
from lmcore.optim.schedule import learning_rate
from lmcore.run.engine import Engine
from lmcore.run.opening import with_vocabulary
from torchlm.engine import Engine as TorchEngine

STEPS = 100


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, np.ndarray]:
    """A small run on embedded stories, and its batches."""
    config = Config(
        model=ModelConfig(dim=60, n_layers=3, n_heads=5, n_kv_heads=1, head_dim=12, ffn_dim=128, max_seq_len=37),
        data=DataConfig(stories=200, dir=str(tmp_path_factory.mktemp("data"))),
        tokenizer=TokenizerConfig(vocab_size=400),
        train=TrainConfig(steps=STEPS, batch_size=6, grad_accum=2, device="cpu", cpu_devices=2),
        optim=OptimConfig(lr=1e-2),  # so high that rounding errors grow to their full size
    )
    prepared = prepare(config)
    train = config.train
    batches = Batches(prepared.train, seq_len=train.seq_len, batch_size=train.batch_size, seed=train.seed)
    return with_vocabulary(config, prepared.tokenizer.vocab_size), np.stack([batches.batch(s) for s in range(STEPS)])


def trained(engine: Engine, config: Config, batches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradient norms of the steps on these batches."""
    rows = [engine.train_step(batch, learning_rate(config, step)) for step, batch in enumerate(batches)]
    return tuple(np.array([float(row[name]) for row in rows]) for name in ("loss", "grad_norm"))


def begun(make: type, config: Config) -> Engine:
    engine = make(config)
    engine.init()
    return engine


def moved(config: Config, seed: int) -> TorchEngine:
    """A run whose initial weights are each one ulp up or down."""
    engine, rng = begun(TorchEngine, config), np.random.default_rng(seed)
    for p in engine.state.params.values():
        values = p.numpy()
        values[...] = np.nextafter(
            values, np.where(rng.random(values.shape) < 0.5, -np.inf, np.inf), dtype=values.dtype
        )
    return engine


def test_both_start_from_the_same_bits(run):
    config, _ = run
    jax, torch = begun(JaxEngine, config).state.params, begun(TorchEngine, config).state.params
    assert len(jax) == len(torch)
    for name, value in jax.items():
        found = torch[name.replace(".kernel", ".weight")].numpy()
        assert np.array_equal(found.T if name.endswith(".kernel") else found, np.asarray(value)), name
    other = begun(TorchEngine, replace(config, train=replace(config.train, seed=1))).state.params
    assert not np.array_equal(other["embed_tokens.weight"], torch["embed_tokens.weight"])


@pytest.mark.slow
def test_a_hundred_steps_stay_within_the_noise_of_float32(run):
    config, batches = run
    jax, jax_norms = trained(begun(JaxEngine, config), config, batches)
    torch, torch_norms = trained(begun(TorchEngine, config), config, batches)
    apart = np.abs(torch - jax)
    assert jax[0] - jax[-1] > 1, "a run in which nothing is learnt proves little"
    assert apart[0] <= 1e-6
    assert apart[:10].max() <= 1e-5
    np.testing.assert_allclose(torch_norms[:5], jax_norms[:5], rtol=1e-5)
    draws = [np.abs(trained(moved(config, seed), config, batches)[0] - torch).max() for seed in range(3)]
    assert apart.max() <= 2 * np.median(draws)
    assert min(draws) > 0


@pytest.mark.parametrize(
    "changed",
    [
        {"optim": {"eps": 1e-7}},
        {"optim": {"weight_decay": 0.0}},
        {"optim": {"clip": 0.9}},
        {"model": {"rope_theta": 9000.0}},
        {"model": {"norm_eps": 1e-4}},
    ],
)
def test_ten_steps_show_a_small_fault(run, changed: dict[str, dict[str, float]]):
    config, batches = run
    faulty = replace(config, **{group: replace(getattr(config, group), **to) for group, to in changed.items()})
    jax, _ = trained(begun(JaxEngine, config), config, batches[:10])
    torch, _ = trained(begun(TorchEngine, faulty), config, batches[:10])
    assert np.abs(torch - jax).max() > 2e-5


def test_float64_agrees_to_rounding(run):
    config, batches = run
    config = replace(config, train=replace(config.train, precision="float64"))
    try:
        jax, _ = trained(begun(JaxEngine, config), config, batches[:10])
    finally:
        JaxEngine(replace(config, train=replace(config.train, precision="float32")))  # x64 is a setting of the process
    torch, _ = trained(begun(TorchEngine, config), config, batches[:10])
    assert np.abs(torch - jax).max() <= 1e-12


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(SampleConfig(temperature=0, max_tokens=60), marks=pytest.mark.slow),
        pytest.param(SampleConfig(temperature=1, max_tokens=60), marks=pytest.mark.slow),
        SampleConfig(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, max_tokens=60, seed=3),
    ],
)
def test_the_same_weights_and_seed_write_the_same_text(run, options: SampleConfig):
    config, batches = run
    jax, torch = begun(JaxEngine, config), begun(TorchEngine, config)
    trained(torch, config, batches[:30])
    for name in jax.state.params:
        value = torch.state.params[name.replace(".kernel", ".weight")].numpy()
        jax.state.params[name] = jax.state.params[name].at[...].set(value.T if name.endswith(".kernel") else value)

    def text(engine: Engine, options: SampleConfig) -> np.ndarray:
        prompts = [[5, 6, 7], [8], list(range(30))]
        chunks = write_tokens(engine.generator(options), prompts, options, context=37, pad=0)
        return np.concatenate(list(chunks), axis=1)

    assert np.array_equal(text(jax, options), text(torch, options))
    assert not np.array_equal(text(jax, options), text(torch, replace(options, temperature=2, seed=9)))
