"""The benchmark: real implementations end to end, and mistakes on its command line."""

import json
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lmcore.config import ModelConfig
from lmcore.model.flops import flops_per_token
from parity.bench.command import main
from parity.bench.modes import TOLERANCE
from parity.bench.report import load

MODEL = ModelConfig(vocab_size=101, dim=20, n_layers=2, n_heads=2, n_kv_heads=1, max_seq_len=24)
TINY = [
    *("--model.vocab_size", "101", "--model.dim", "20", "--model.n_layers", "2", "--model.n_heads", "2"),
    *("--model.n_kv_heads", "1", "--model.ffn_dim", "0", "--model.max_seq_len", "24", "--train.batch_size", "6"),
    *("--train.grad_accum", "2", "--model.dropout", "0.1"),
    *("--sample.max_tokens", "20", "--train.device", "cpu", "--dtype", "float32", "--rounds", "2"),
    *("--prompts", "1", "3", "--prompt_tokens", "7"),
]

WITHOUT_PACKAGES = Path(sys.base_prefix) / "bin" / Path(sys.executable).resolve().name
"""The interpreter that this environment was made from."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of all eager implementations wrote as JSON."""
    out = tmp_path_factory.mktemp("bench")
    peers = ["--peers", "hf"] if find_spec("transformers") else []
    implementations = ["jaxlm", "torchlm", *(["transformers"] if peers else [])]
    assert main([*TINY, *peers, "--only", *implementations, "--out", str(out)]) == 0
    (written,) = out.glob("*.json")
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "</html>" in written.with_suffix(".html").read_text()
    return json.loads(written.read_text()) | {"implementations": implementations, "path": written}


def of_mode(measured: dict[str, Any], mode: str) -> list[dict[str, Any]]:
    return [measure for measure in measured["measures"] if measure["mode"] == mode]


def test_every_side_has_its_turns_in_both_modes(measured: dict[str, Any]):
    implementations = measured["implementations"]
    assert [m["implementation"] for m in of_mode(measured, "train")] == [*implementations, "matmul"]
    found = [(m["what"], m["implementation"]) for m in of_mode(measured, "generate")]
    whats = (
        *("prefill 1 sequence of 7 tokens", "decode 1 sequence of 20 tokens"),
        *("prefill 3 sequences of 7 tokens", "decode 3 sequences of 20 tokens"),
    )
    assert sorted(found) == sorted((what, implementation) for what in whats for implementation in implementations)
    assert all(len(m["seconds"]) == 2 and min(m["seconds"]) > 0 for m in measured["measures"])


def test_sides_have_the_same_model_and_say_how_near_they_are(measured: dict[str, Any]):
    for m in measured["measures"]:
        if m["implementation"] != "matmul":
            assert m["facts"]["parameters"] == 2 * (20 * 20 * 2 + 20 * 10 * 2 + 3 * 20 * 64 + 2 * 20) + 101 * 20 + 20
            assert m["facts"]["difference"] <= TOLERANCE["float32"]


def test_rates_and_shares_follow_from_the_samples(measured: dict[str, Any]):
    *trained, matmul = of_mode(measured, "train")
    base = next((m for m in trained if m["implementation"] == "transformers"), trained[1])
    flops = flops_per_token(MODEL, 24) * 6 * 24
    for m in trained:
        derived, rates = m["derived"], [m["amount"] / s for s in m["seconds"]]
        assert m["amount"] == 2 * 6 * 24
        assert derived["median"] == pytest.approx(statistics.median(rates))
        assert derived["lower_quartile"] <= derived["median"] <= derived["upper_quartile"]
        assert derived["ratio"] == pytest.approx(
            statistics.median(theirs / mine for mine, theirs in zip(m["seconds"], base["seconds"], strict=True))
        )
        assert derived["flops_per_second"] == pytest.approx(flops / derived["step_seconds"])
        both = zip(m["seconds"], matmul["seconds"], strict=True)
        shares = [2 * flops / mine / (matmul["amount"] / bare) for mine, bare in both]
        assert derived["share_of_matmul_peak"] == pytest.approx(statistics.median(shares))
        assert "mfu" not in derived
    assert base["derived"]["ratio"] == 1
    assert matmul["amount"] == 3 * 2 * 2048**3


def test_memory_is_of_the_side_alone_and_idle_sides_sleep(measured: dict[str, Any]):
    for m in measured["measures"]:
        facts = m["facts"]
        assert 20e6 < facts["start_bytes"] <= facts["rss_bytes"] < 3e9
        assert facts["device_bytes"] is None
        assert facts["idle_fraction"] < 0.5


def test_a_report_is_read_back_as_it_was(measured: dict[str, Any]):
    report = load(measured["path"])
    again = json.loads(json.dumps(report.to_dict()))
    assert again == {name: value for name, value in measured.items() if name not in ("implementations", "path")}


# Mistakes.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "7b"], "--shape: found '7b', expected 15m, 124m, 1b"),
        (["--shape", "1b", "--config", "configs/quickstart.yaml"], "--shape: found it beside --config"),
        (["--mode", "train", "fly"], "--mode: found 'fly', expected train, generate, serve, prepare, startup"),
        (["--dtype", "int8"], "--dtype: found 'int8', expected float32"),
        (
            ["--dtype", "float64", "--peers", "hf"],
            "--dtype: found 'float64' with --peers, expected",
        ),
        (["--peers", "vllm"], "--peers: found 'vllm', expected hf, keras, litgpt, llamacpp"),
        (
            ["--peers", "litgpt", "--peer_python", f"litgpt={WITHOUT_PACKAGES}"],
            f"--peers litgpt: found no package litgpt in the environment of {WITHOUT_PACKAGES}, expected litgpt and",
        ),
        (
            ["--peer_python", "keras=python"],
            "--peer_python: found 'keras=python', expected NAME=PATH with a NAME among",
        ),
        (["--only", "transformers"], "--only: found 'transformers', expected jaxlm, torchlm, torchlm-compiled"),
        (["--mode", "train", "--only", "jaxlm-int8"], "--only: found jaxlm-int8, expected for --mode train any of"),
        (["--only", "torchlm-compiled"], "--only: found torchlm-compiled, expected for --mode generate any of jaxlm"),
        (["--peers", "hf", "--optim.name", "lion"], "optim.name: found 'lion' with --peers, expected adamw"),
        (["--rounds", "0"], "--rounds: found 0, expected at least 1"),
        (["--turn_steps", "-1"], "--turn_steps: found -1, expected at least 0"),
        (["--prompts", "1", "many"], "--prompts: found 'many', expected numbers such as 1 32"),
        (["--compare", "no.json"], "--compare: found no file 'no.json', expected a JSON file that"),
        (["--out", __file__], f"--out: {__file__} is a file, expected a folder; name another folder"),
        (["--model.dim", "289"], "model.dim: found 289, expected a multiple of n_heads = 6"),
    ],
)
def test_a_mistake_gets_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.slow
def test_a_type_that_the_device_lacks_is_refused_by_the_side_and_what_was_measured_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--dtype", "float16", "--only", "torchlm", "--mode", "generate", "--out", str(tmp_path)]
    assert main([*TINY, *words]) == 2  # after float32, which TINY asks for
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: train.precision: found 'float16'")
    (written,) = tmp_path.glob("*.json")
    assert {measure["dtype"] for measure in json.loads(written.read_text())["measures"]} == {"float32"}


def test_mistakes_and_help_load_no_framework():
    program = (
        "import sys; from parity.bench import main; main(sys.argv[1:]); print({'jax', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, "--rounds", "0"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
