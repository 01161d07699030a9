"""The adapter gives lm-eval the numbers of its own HFLM on the Hugging Face export, in both twins."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from lm_eval.api.instance import Instance

import torchlm.train
from jaxlm.engine import Engine as JaxEngine
from lmcore.errors import NotFinite, UserError
from lmcore.harness.adapter import EngineLM
from lmcore.harness.tasks import open_tasks
from lmcore.run.checkpoints import find_checkpoint
from lmcore.run.folder import load_run
from parity.convert.conversion import convert
from torchlm.engine import Engine as TorchEngine

TEXT = "the cat sat on the mat and the dog sat on the log. " * 30
LONG = "the cat and the dog " * 8
ENGINES = {"jax": JaxEngine, "torch": TorchEngine}
Open = Callable[..., EngineLM]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of torchlm, trained so far that it writes words."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(TEXT)
    shape = ["--model.dim=16", "--model.n_layers=1", "--model.n_heads=2", "--model.max_seq_len=48"]
    words = [*shape, "--train.steps=60", "--train.batch_size=4", "--optim.lr=0.02", "--sample.max_tokens=1"]
    text = [f"--data.files={folder / 'text.txt'}", f"--data.dir={folder / 'data'}", "--tokenizer.vocab_size=270"]
    assert torchlm.train.main([f"--run_dir={folder / 'torch'}", *text, *words]) == 0
    convert(folder / "torch", "jax", folder / "jax")
    convert(folder / "torch", "hf", folder / "hf")
    return folder


@pytest.fixture(scope="module")
def opened(run: Path) -> Open:
    """Opens the run in a twin."""

    def open_run(framework: str, batch_size: int = 3) -> EngineLM:
        checkpoint = find_checkpoint(run / framework)
        config, tokenizer = load_run(checkpoint)
        engine = ENGINES[framework](config)
        engine.restore(checkpoint.state, optimizer=False)
        return EngineLM(engine, config, tokenizer, batch_size)

    return open_run


@pytest.fixture(scope="module")
def reference(run: Path) -> Any:
    """lm-eval's own model, on the export."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(run / "hf"), device="cpu", dtype="float32", batch_size=2)


@pytest.fixture(scope="module")
def tasks(run: Path) -> Path:
    """A folder with a multiple-choice task, a perplexity and a generation task."""
    folder = run / "tasks"
    folder.mkdir()
    choices = [[" mat", " log", " the mat and the dog"], [" sat on", " cat", " xyz"], ["dog", " dog", " d"]]
    rows = [
        {"text": text, "choices": each, "answer": i % 3, "target": "mat"}
        for i, (text, each) in enumerate(zip(["the cat sat on the", LONG + "the dog", ""], choices, strict=True))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\ntest_split: test\n"
    )
    kinds = {
        "choosing": "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: answer\ntarget_delimiter: ''\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n",
        "reading": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}} and the dog'\n"
        "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n",
        "writing": "output_type: generate_until\ndoc_to_text: '{{text}} the'\ndoc_to_target: '{{target}}'\n"
        "generation_kwargs: {until: ['.', 'dog'], max_gen_toks: 20}\nmetric_list: [{metric: exact_match}]\n",
    }
    for name, text in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{shared}{text}")
    return folder


def results(model: Any, tasks: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    names = ["choosing", "reading", "writing"]
    found = lm_eval.simple_evaluate(model, tasks=names, task_manager=open_tasks(names, str(tasks)), bootstrap_iters=0)
    answers = {name: [sample["filtered_resps"] for sample in found["samples"][name]] for name in names}
    return found["results"], answers


@pytest.mark.parametrize("framework", ENGINES)
def test_results_are_those_of_lm_evals_own_model_on_the_export(
    framework: str, opened: Open, reference: Any, tasks: Path
):
    (ours, own), (theirs, other) = results(opened(framework), tasks), results(reference, tasks)
    for name in ("choosing", "reading", "writing"):
        for metric, value in theirs[name].items():
            expected = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert ours[name][metric] == expected, (name, metric)
    assert own["writing"] == other["writing"]
    assert any(text[0] for text in own["writing"]), "a generation of nothing proves little"
    np.testing.assert_allclose(own["reading"], other["reading"], rtol=1e-5)
    for mine, theirs in zip(own["choosing"], other["choosing"], strict=True):
        np.testing.assert_allclose([float(p) for p, _ in mine], [float(p) for p, _ in theirs], rtol=0, atol=2e-5)
        assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
    assert any(str(greedy) == "True" for answer in own["choosing"] for _, greedy in answer)


def requests(kind: str, *args: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(args)]


PAIRS = [("the cat", " sat"), (LONG, " and the dog"), ("", "the"), ("a", " mat and the log. the cat")]


def test_padding_and_order_change_nothing(opened: Open):
    together = opened("torch", 4).loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    alone = opened("torch", 1)
    for pair, (value, greedy) in zip(PAIRS, together, strict=True):
        [(expected, was_greedy)] = alone.loglikelihood(requests("loglikelihood", pair), disable_tqdm=True)
        assert (value, greedy) == (pytest.approx(expected, abs=1e-5), was_greedy)
    assert len({round(value, 3) for value, _ in together}) == 4


def test_a_context_that_is_too_long_loses_its_beginning(opened: Open):
    model = opened("torch")
    one, other = ((f"{first} {LONG}", " and the dog") for first in ("log", "mat"))
    [(long, _), (same, _)] = model.loglikelihood(requests("loglikelihood", one, other), disable_tqdm=True)
    assert long == pytest.approx(same, abs=1e-6)
    short = ((f"{first} cat", " and the dog") for first in ("log", "mat"))
    [(one_value, _), (other_value, _)] = model.loglikelihood(requests("loglikelihood", *short), disable_tqdm=True)
    assert abs(one_value - other_value) > 1e-4


def test_generation_settings_are_checked(opened: Open):
    model = opened("torch")
    greedy = {"until": ["."], "max_gen_toks": 9, "do_sample": False, "temperature": 0.0, "num_beams": 1}
    [text] = model.generate_until(requests("generate_until", ("the cat", greedy)))
    assert "." not in text
    sampled = {"max_gen_toks": 9, "do_sample": True, "temperature": 0.9, "top_p": 0.9}
    options, stops = model._options(sampled)
    assert (options.temperature, options.top_p, options.max_tokens, stops) == (0.9, 0.9, 9, ["<|endoftext|>"])
    for settings, message in (
        ({"max_gen_toks": 48}, r"^--gen_kwargs: found max_gen_toks 48, expected less than model.max_seq_len = 48; set"),
        ({"num_beams": 4, "max_gen_toks": 2}, r"^--gen_kwargs: found num_beams, expected any of until"),
    ):
        with pytest.raises(UserError, match=message):
            model.generate_until(requests("generate_until", ("the cat", settings)))


def test_weights_that_are_not_finite_are_said(opened: Open):
    model = opened("torch")
    model.engine.state.params["embed_tokens.weight"].fill_(np.nan)
    with pytest.raises(NotFinite, match="log-probabilities that are not finite"):
        model.loglikelihood(requests("loglikelihood", *PAIRS[:1]), disable_tqdm=True)
    with pytest.raises(NotFinite, match="gives NaN for every token"):
        model.generate_until(requests("generate_until", ("the cat", {"max_gen_toks": 4})))
