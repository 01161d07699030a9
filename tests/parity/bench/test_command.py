"""The benchmark: real implementations end to end, numbers that follow from samples, planted faults that are caught."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lmcore.config import Config, ModelConfig, OptimConfig, SampleConfig, TrainConfig, differences
from lmcore.model.flops import flops_per_token
from parity.bench import growth
from parity.bench.command import main
from parity.bench.modes import TOLERANCE, Agreement, Differ, generation, training
from parity.bench.page import page
from parity.bench.report import Measure, Report, changes, load
from parity.bench.rounds import Options, Process

MODEL = ModelConfig(vocab_size=101, dim=20, n_layers=2, n_heads=2, n_kv_heads=1, max_seq_len=24)
CONFIG = Config(
    model=MODEL,
    train=TrainConfig(batch_size=6, grad_accum=2, device="cpu"),
    optim=OptimConfig(lr=1e-2),
    sample=SampleConfig(max_tokens=20),
)
TINY = [
    *("--model.vocab_size", "101", "--model.dim", "20", "--model.n_layers", "2", "--model.n_heads", "2"),
    *("--model.n_kv_heads", "1", "--model.ffn_dim", "0", "--model.max_seq_len", "24", "--train.batch_size", "6"),
    *("--train.grad_accum", "2", "--model.dropout", "0.1"),
    *("--sample.max_tokens", "20", "--train.device", "cpu", "--dtype", "float32", "--rounds", "2"),
    *("--prompts", "1", "3", "--prompt_tokens", "7"),
]
TWO = Options(rounds=1, turn_steps=1, batches=(2,), prompt_tokens=7, alone=False)


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


# Implementations that do not compute the same.


def planted(monkeypatch: pytest.MonkeyPatch, group: str, field: str, value: float) -> None:
    """Give torchlm's process another value of one field."""
    order = Process.order

    def other(self: Process, do: str, **arguments: Any) -> None:
        if do == "make" and self.implementation == "torchlm":
            arguments["config"][group][field] = value
        order(self, do, **arguments)

    monkeypatch.setattr(Process, "order", other)


def test_a_wrong_rotary_base_is_caught_before_generation_is_timed(monkeypatch: pytest.MonkeyPatch):
    planted(monkeypatch, "model", "rope_theta", 500.0)
    with pytest.raises(Differ, match=r"logits after a prompt in float32: torchlm and jaxlm differ by \S+e-"):
        generation(CONFIG, ["jaxlm", "torchlm"], TWO)


def test_a_wrong_update_is_caught_before_training_is_timed(monkeypatch: pytest.MonkeyPatch):
    planted(monkeypatch, "optim", "beta1", 0.8)  # the first update is the same for every beta
    with pytest.raises(Differ, match="losses of the first updates in float32: torchlm and jaxlm differ"):
        training(CONFIG, ["jaxlm", "torchlm"], TWO)


@pytest.mark.parametrize("found", [[8.0, 7.9002], [8.0, float("nan")]])
def test_beyond_the_tolerance_is_not_the_same(found: list[float]):
    agreement = Agreement("losses", "float32")
    assert agreement.check("one", [8.0, 7.9]) == 0
    assert agreement.check("two", [8.0, 7.90001]) == pytest.approx(1.25e-6, rel=1e-3)
    with pytest.raises(Differ) as caught:
        agreement.check("three", found)
    assert caught.value.exit_code == 1


# Reports.


def measure(implementation: str, seconds: list[float], **facts: Any) -> Measure:
    facts = {"steps": 2, "step_flops": 6e9, "first_seconds": 3.0, "peak": 1e12, "device": "GPU"} | facts
    kind: dict[str, Any] = {"mode": "train", "dtype": "bfloat16", "what": "train 2 × 4", "unit": "tokens/s"}
    return Measure(
        **kind, implementation=implementation, amount=16.0, seconds=seconds, cpu_seconds=seconds, facts=facts
    )


def report(*measures: Measure) -> Report:
    said: dict[str, Any] = {"settings": {}, "machine": {"processor": "<one> & two"}, "versions": {}, "flags": {}}
    return Report(command="python -m parity.bench", date="2026-11-24T02:00:00+00:00", measures=list(measures), **said)


def test_mfu_is_a_fraction_of_the_vendors_peak():
    half = measure("jaxlm", [0.5, 0.5, 0.5, 0.5])
    derived = report(half).derived(half, half)
    assert derived["mfu"] == pytest.approx(6e9 / 0.25 / 1e12)
    assert derived["compile_seconds"] == pytest.approx(2.75)
    single = replace(half, dtype="float32")
    assert "mfu" not in report(single).derived(single, single)


def test_a_ratio_holds_on_a_machine_that_slows_down_meanwhile():
    fast, slow = measure("jaxlm", [1.0, 2.0, 4.0]), measure("torchlm", [2.0, 4.0, 8.0])
    assert fast.speed(slow) == 2
    assert slow.speed(fast) == 0.5


def test_a_page_shows_every_side_and_fetches_nothing():
    text = page(report(measure("jaxlm", [1.0, 2.0]), measure("torchlm", [2.0, 2.0])))
    assert "&lt;one&gt; &amp; two" in text
    assert text.count("<tr>") == text.count("</tr>") == 3
    assert not any(word in text for word in ("http:", "https:", "url(", "<script", "src="))


LAYOUT = """({
    page: document.documentElement.scrollWidth,
    cut: [...document.querySelectorAll(".card")].filter(card => card.scrollWidth > card.clientWidth).length,
    bars: [...document.querySelectorAll(".bars i")].map(bar => bar.getBoundingClientRect().width),
})"""


@pytest.mark.parametrize("width", [1200, 400])
def test_a_page_fits_its_window_and_its_bars_are_as_long_as_the_medians(
    width: int, in_browser: Callable[[str, int, str], Any]
):
    names = ("jaxlm", "torchlm", "torchlm-compiled", "transformers", "transformers-compiled")
    memory = {"rss_bytes": 2.4e9, "device_bytes": 31e9, "step_flops": 1.4e13}
    measures = [measure(name, [1e-4 * (1 + number)] * 4, **memory) for number, name in enumerate(names)]
    matmul = replace(measure("matmul", [0.005] * 4), unit="FLOP/s", what="matmul", amount=3e12)
    text = page(report(*measures, matmul))
    assert text.count("<th>share of matmul peak</th>") == 1
    layout = in_browser(text, width, LAYOUT)
    assert layout["page"] <= width
    assert layout["cut"] == 0
    longest = layout["bars"][0]
    assert longest > width / 2
    assert layout["bars"] == pytest.approx([longest / (1 + number) for number in range(5)], abs=1)
    wider = in_browser(text.replace("</style>", "table { min-width: 1300px; }</style>"), width, LAYOUT)
    assert wider["cut"] == 1, "a table that is too wide would be seen"


def test_a_report_of_the_first_schema_is_read_under_the_new_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whats = ("read 1 text of 32", "write 32 texts of 250", "train 2 × 4")
    common: dict[str, Any] = {"dtype": "float32", "amount": 16.0, "cpu_seconds": [], "derived": {"median": 1.0}}
    common |= {
        "mode": "generate",
        "unit": "tokens/s",
        "facts": {"rows": 1, "idle_share": 0.0, "weight_bytes": 8},
        "seconds": [1.0, 1.0],
    }
    measures = [common | {"side": "torchlm", "what": what} for what in whats]
    measures.append(common | {"side": "product", "what": "a matrix product", "unit": "FLOP/s"})
    fields: dict[str, Any] = {"settings": {}, "machine": {}, "versions": {}, "flags": {}, "measures": measures}
    old = {"schema": 1, "command": "python -m parity.bench", "date": "2026-11-24T02:00:00+00:00"} | fields
    (tmp_path / "old.json").write_text(json.dumps(old))
    found = load(tmp_path / "old.json").measures
    assert [(m.implementation, m.what) for m in found] == [
        ("torchlm", "prefill 1 sequence of 32 tokens"),
        ("torchlm", "decode 32 sequences of 250 tokens"),
        ("torchlm", "train 2 × 4"),
        ("matmul", "matmul"),
    ]
    assert found[0].facts == {"sequences": 1, "idle_fraction": 0.0, "weight_bytes": 8}
    report(*(replace(m, seconds=[2.0, 2.0]) for m in found)).save_json(tmp_path / "new.json")
    assert main(["--compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("× 0.50" in line and "slower" in line for line in lines) == 4


def test_a_change_counts_where_the_interquartile_ranges_do_not_overlap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    old = report(measure("jaxlm", [1.0, 1.1, 1.2, 1.3]), measure("torchlm", [1.0, 1.1, 1.2, 1.3]))
    new = report(measure("jaxlm", [1.1, 1.2, 1.3, 1.4]), measure("torchlm", [2.0, 2.2, 2.4, 2.6]))
    near, far = changes(old, new)
    assert (near.beyond_spread, far.beyond_spread) == (False, True)
    assert far.ratio == pytest.approx(0.5)
    old.save_json(tmp_path / "old.json")
    new.save_json(tmp_path / "new.json")
    assert main(["--compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["slower" in line for line in lines if "jaxlm" in line] == [False]
    assert ["slower" in line for line in lines if "torchlm" in line] == [True]


# Mistakes.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "7b"], "--shape: found '7b', expected 15m, 124m, 1b"),
        (["--shape", "1b", "--config", "configs/quickstart.yaml"], "--shape: found it beside --config"),
        (["--mode", "train", "fly"], "--mode: found 'fly', expected train, generate, prepare, startup"),
        (["--dtype", "int8"], "--dtype: found 'int8', expected float32"),
        (
            ["--dtype", "float64", "--peers", "hf"],
            "--dtype: found 'float64' with --peers hf, expected",
        ),
        (["--peers", "vllm"], "--peers: found 'vllm', expected hf"),
        (["--only", "transformers"], "--only: found 'transformers', expected jaxlm, torchlm, torchlm-compiled"),
        (["--only", "torchlm-compiled"], "--only: found torchlm-compiled, expected for --mode generate any of jaxlm"),
        (["--peers", "hf", "--optim.name", "lion"], "optim.name: found 'lion' with --peers hf, expected adamw"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "found schema 'list'"),
        ('{"schema": 0}', "found schema 0"),
        ('{"schema": 1, "measures": []}', "a field is missing"),
        ('{"schema": 1, "measures": [{"derived": {}, "implementation": "x"}]}', "a field is missing"),
    ],
)
def test_a_file_that_is_no_report_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "old.json"
    path.write_text(text)
    assert main(["--compare", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "expected a JSON file that python -m parity.bench wrote" in line


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


def test_preparing_text_is_timed_beside_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n<|endoftext|>\n" * 500)
    words = ["--mode", "prepare", "--data.files", str(text), "--model.vocab_size", "300", "--rounds", "2"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    (written,) = (tmp_path / "out").glob("*.json")
    implementations = {m["implementation"]: m for m in json.loads(written.read_text())["measures"]}
    assert set(implementations) == {"prepare", "encode_batch", "encode_batch_fast"}
    assert implementations["encode_batch"]["derived"]["ratio"] == 1
    assert len({m["amount"] for m in implementations.values()}) == 1


# Growth.


def test_an_exponent_is_the_slope_of_the_logarithms():
    assert growth.exponent([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert growth.exponent([256, 512, 1024], [5e6, 20e6, 80e6]) == pytest.approx(2)


@pytest.mark.parametrize("axis", growth.AXES)
def test_one_size_grows_and_the_others_stay(axis: str):
    first, last = growth.AXES[axis][0], growth.AXES[axis][-1]
    changed = set(differences(growth.config_at(axis, first), growth.config_at(axis, last)))
    expected = {
        "sequence": {"model.max_seq_len", "train.seq_len"},
        "width": {"model.dim", "model.n_heads", "model.n_kv_heads", "model.ffn_dim"},
        "depth": {"model.n_layers"},
        "scanned": {"model.n_layers"},
        "batch": {"train.batch_size", "eval.batch_size"},
        "accumulation": {"train.grad_accum"},
    }
    assert changed - {"eval.batch_size"} == expected[axis] - {"eval.batch_size"}


@pytest.mark.slow
def test_growth_is_measured_and_drawn(tmp_path: Path):
    point = growth.measure("batch", 2, "torchlm", updates=1)
    assert (point.value, point.implementation) == (2, "torchlm")
    assert 1e5 < point.bytes < 1e9
    growth.plot([point, replace(point, value=4, seconds=2 * point.seconds)], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [["--axes", "time"], ["--only", "hf"], ["--most", "1"]])
def test_a_mistake_of_growth_gets_one_line(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert growth.main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {words[0]}: found ")


@pytest.mark.slow
def test_starting_is_timed(tmp_path: Path):
    assert main(["--mode", "startup", "--rounds", "1", "--only", "torchlm", "--out", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("*.json")
    found = {m["what"]: m["seconds"][0] for m in json.loads(written.read_text())["measures"]}
    assert list(found) == ["--help", "first step, nothing cached", "first step, all cached"]
    assert min(found.values()) > 0
