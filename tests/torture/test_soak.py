"""A run that stays as it is is called flat, and one that leaks anything is not."""

import os
import re
import threading
from pathlib import Path

import pytest

from tests.torture import soak
from tests.torture.soak import Sample, growth, verdict


def run(memory: float = 0.0, files: float = 0.0, threads: float = 0.0, steps: int = 10_000) -> list[Sample]:
    """A run that warms up, jitters, and leaks so much at every 50 steps (memory in MB)."""
    return [
        Sample(
            50 * i,
            300 - 100 * 0.9**i + i % 7 / 10 + memory * i,
            8 + i % 4 + int(files * i),
            20 + i % 3 + int(threads * i),
        )
        for i in range(1, steps // 50 + 1)
    ]


def test_a_run_that_warms_up_and_jitters_is_flat():
    assert verdict(run()) == ""
    spiked = [Sample(s.step, s.memory + 50 * (s.step == 9000), s.files + 9 * (s.step == 9000), 20) for s in run()]
    assert verdict(spiked) == "", "one busy moment is no leak"


@pytest.mark.parametrize(
    ("leak", "told"),
    [
        ({"memory": 0.01}, r"memory by 2\.\d MB in 10,000 steps, expected at most 1\.0"),
        ({"files": 0.02}, r"files from \d+ to \d+"),
        ({"threads": 0.02}, r"threads from \d+ to \d+"),
    ],
)
def test_a_leak_is_told(leak: dict[str, float], told: str):
    assert re.fullmatch(told, verdict(run(**leak)))


def test_growth_is_the_slope_over_ten_thousand_steps():
    assert growth([Sample(step, 100 + step / 1000, 0, 0) for step in range(0, 3000, 500)]) == pytest.approx(10)


def test_a_short_run_of_torchlm_keeps_its_files_and_threads(tmp_path: Path):
    samples = soak.soak("torchlm", 300, tmp_path, every=20)
    assert [sample.step for sample in samples][:3] == [1, 10, 20]
    assert len(samples) == 31
    assert samples[-1].memory > 50
    assert "files" not in verdict(samples)
    assert "threads" not in verdict(samples)
    leaking = [Sample(s.step, s.memory, s.files + s.step // 20, s.threads) for s in samples]
    assert "files from" in verdict(leaking), "one file left open by each checkpoint"


def test_every_thread_counts_but_those_of_the_pool():
    process, end = os.getpid(), threading.Event()
    before = soak._sample(process, 1).threads
    pooled, other = (threading.Thread(target=end.wait) for _ in range(2))
    for thread in (pooled, other):
        thread.start()
    Path(f"/proc/self/task/{pooled.native_id}/comm").write_text(soak.POOL)
    after = soak._sample(process, 2).threads
    end.set()
    assert after == before + 1


def test_a_run_that_fails_is_said(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"torchlm: exit code 2: error: train.steps: found 0"):
        soak.soak("torchlm", 0, tmp_path)


def test_the_plot_has_a_curve_for_each_twin(tmp_path: Path):
    soak.plot({"jaxlm": run(), "torchlm": run(memory=0.1)}, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
