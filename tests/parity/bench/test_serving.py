"""The server is timed: what a report has of it, and the servers themselves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmcore.config import Config, ModelConfig
from parity.bench.command import main
from parity.bench.report import Report
from parity.bench.serving import CLIENTS, Server, _bodies, _first_token, _throughput


def test_requests_differ_in_prompt_and_seed_and_are_the_same_each_time():
    bodies = _bodies(5)
    assert bodies == _bodies(5)
    assert [body["seed"] for body in bodies] == list(range(5))
    assert len({body["prompt"] for body in bodies}) == 5
    assert _bodies(2) == bodies[:2]


def test_many_clients_are_compared_with_one_after_the_other():
    config = Config(model=ModelConfig(vocab_size=64))
    answers = {"seconds": 2.0, "tokens": 100, "first_p50": 0.5, "first_p95": 0.75, "rss_bytes": None}
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        one, many = (Server("jaxlm", n, n, ("127.0.0.1", 1), process) for n in (1, CLIENTS))
    assert (one.name, many.name) == ("1 slot, 1 client", "16 slots, 16 clients")
    base = _throughput(config, one, [answers, answers])
    fast = _throughput(config, many, [answers | {"seconds": 0.5}, answers | {"tokens": 300}])
    assert base.median == 50
    assert fast.values == pytest.approx([200, 150])
    report = Report(command="", date="", settings={}, machine={}, versions={}, flags={}, measures=[base, fast])
    assert report.base(report.groups()[0]) is base
    assert fast.speed(base) == pytest.approx(3.5)
    late = _first_token(95)(config, many, [answers])
    assert (late.unit, late.median, late.what) == ("s", 0.75, "jaxlm, first token, 95 %")


@pytest.mark.slow
def test_the_servers_of_both_twins_are_timed(tmp_path: Path):
    shape = ["--model.dim=32", "--model.n_layers=1", "--model.n_heads=2", "--model.ffn_dim=32"]
    shape += ["--model.vocab_size=320", "--model.max_seq_len=256"]
    words = ["--mode", "serve", "--rounds", "1", "--requests", "4", "--dtype", "float32", *shape]
    assert main([*words, "--out", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("*.json")
    measures = json.loads(written.read_text())["measures"]
    assert len(measures) == 12
    assert len({m["implementation"] for m in measures}) == 2
    assert all(m["derived"]["median"] > 0 for m in measures)
