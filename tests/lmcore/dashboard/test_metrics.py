import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from lmcore.dashboard import metrics
from lmcore.dashboard.metrics import MetricsReader, last_row
from lmcore.run.trackers import JsonlTracker
from tests.lmcore.dashboard.run_folders import rows


class Counting(io.BufferedReader):
    """A file that counts the bytes that are read, beyond the comparison with what was read before."""

    total = 0

    def read(self, count: int | None = -1) -> bytes:
        content = super().read(count)
        Counting.total += len(content) if count is not None and count > metrics.COMPARED else 0
        return content


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text(rows(3))
    return path


@pytest.fixture
def reader(path: Path) -> MetricsReader:
    reader = MetricsReader(lambda: path.open("rb"))
    reader.refresh()
    return reader


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def steps(reader: MetricsReader) -> list[int]:
    reader.refresh()
    return reader.series()[0].tolist()


def values(reader: MetricsReader, name: str) -> dict[int, float]:
    """Step -> value."""
    reader.refresh()
    all_steps, [(index, found)] = reader.series(name)
    return dict(zip(all_steps[index].tolist(), found.tolist(), strict=True))


def test_the_rows_are_those_of_the_file(reader: MetricsReader):
    assert values(reader, "loss") == {10: 4.9, 20: 4.8, 30: 4.7}
    assert values(reader, "absent") == {}
    assert reader.names() == ["tokens", "loss", "tokens_per_second"]


def test_only_what_was_appended_is_read(path: Path):
    Counting.total = 0
    reader = MetricsReader(lambda: Counting(io.FileIO(path)))
    reader.refresh()
    assert Counting.total == path.stat().st_size
    added = rows(2, start=4)
    append(path, added)
    version, Counting.total = reader.version, 0
    assert steps(reader) == [10, 20, 30, 40, 50]
    assert Counting.total == len(added)
    assert reader.version != version
    version, Counting.total = reader.version, 0
    reader.refresh()
    assert (Counting.total, reader.version) == (0, version)


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_last_line_that_is_half_written_waits_for_its_end(reader: MetricsReader, path: Path, cut: int):
    line = rows(1, start=4)
    append(path, line[:cut])
    assert steps(reader) == [10, 20, 30]
    append(path, line[cut:])
    assert steps(reader) == [10, 20, 30, 40]
    assert reader.rejected == 0


def test_a_character_cut_in_two_waits_for_its_end(reader: MetricsReader, path: Path):
    line = '{"step": 40, "größe": 1}\n'.encode()
    cut = line.index("ö".encode()) + 1
    for part in (line[:cut], line[cut:]):
        with path.open("ab") as file:
            file.write(part)
        reader.refresh()
    assert values(reader, "größe") == {40: 1.0}


def test_a_resumed_run_drops_the_steps_after_its_checkpoint(reader: MetricsReader, path: Path):
    tracker = JsonlTracker(path, resume_step=20)  # replaces the file
    tracker.log({"step": 25, "loss": 1.0})
    tracker.close()
    assert values(reader, "loss") == {10: 4.9, 20: 4.8, 25: 1.0}
    assert values(reader, "tokens") == {10: 1000, 20: 2000}


def test_steps_that_are_written_again_replace_those_before(reader: MetricsReader, path: Path):
    append(path, '{"step": 20, "loss": 1.0}\n{"step": 21, "loss": 0.5}\n')
    assert values(reader, "loss") == {10: 4.9, 20: 1.0, 21: 0.5}
    assert values(reader, "tokens") == {10: 1000}


def test_a_row_of_the_same_step_adds_to_it(reader: MetricsReader, path: Path):
    append(path, '{"step": 30, "valid_loss": 4.5}\n{"step": 30, "loss": 4.0}\n')
    assert values(reader, "valid_loss") == {30: 4.5}
    assert values(reader, "loss") == {10: 4.9, 20: 4.8, 30: 4.0}
    assert steps(reader) == [10, 20, 30]


def test_a_file_that_shrinks_is_read_again(reader: MetricsReader, path: Path):
    path.write_text(rows(1))
    assert steps(reader) == [10]


def test_a_file_that_is_written_again_in_place_and_grew_is_read_again(reader: MetricsReader, path: Path):
    inode = path.stat().st_ino
    path.write_text(rows(6, loss=1.0))
    assert path.stat().st_ino == inode
    assert set(values(reader, "loss").values()) == {1.0}


def test_a_file_that_is_replaced_by_a_longer_one_is_read_again(reader: MetricsReader, path: Path):
    other = path.with_name("other")
    other.write_text(rows(6, loss=1.0))
    os.replace(other, path)
    assert values(reader, "loss") == dict.fromkeys(range(10, 70, 10), 1.0)


def test_a_file_that_is_replaced_is_read_again_even_where_its_end_is_the_same(reader: MetricsReader, path: Path):
    path.write_text(rows(30))
    reader.refresh()
    other = path.with_name("other")
    other.write_text(path.read_text().replace("4.9,", "1.9,", 1))
    os.replace(other, path)
    assert values(reader, "loss")[10] == 1.9


def test_a_file_that_vanishes_has_no_rows_until_it_is_back(reader: MetricsReader, path: Path):
    content = path.read_text()
    path.unlink()
    version = reader.version
    assert steps(reader) == []
    assert reader.version != version
    path.write_text(content)
    assert steps(reader) == [10, 20, 30]


def test_null_and_infinity_are_gaps(reader: MetricsReader, path: Path):
    append(
        path, '{"step": 40, "loss": null}\n{"step": 50, "loss": Infinity}\n{"step": 60, "loss": 1' + "0" * 400 + "}\n"
    )
    found = values(reader, "loss")
    assert [step for step, value in found.items() if np.isnan(value)] == [40, 50, 60]


def test_infinity_alone_is_a_gap(reader: MetricsReader, path: Path):
    append(path, '{"step": 40, "loss": -Infinity, "lr": 1}\n')
    found = values(reader, "loss")
    assert np.isnan(found[40])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not JSON",
        "[1]",
        "null",
        '{"loss": 1}',
        '{"step": "40"}',
        '{"step": true}',
        '{"step": -1}',
        '{"step": 1e400}',
        '{"step": 40.5}',
        '{"step": 99999999999999999999}',
        '{"step": 40},{"step": 50}',
        '{"step": 40}]',
        '{"step": 1, "step": 40',
        "[" * 100_000,
        '{"step": 40, "deep": ' + "[" * 100 + "]" * 100 + "}",
        "\x00\x01",
    ],
)
def test_a_line_that_is_no_row_is_left_out_and_counted(reader: MetricsReader, path: Path, line: str):
    append(path, line + "\n" + rows(1, start=5))
    known = steps(reader)
    if "deep" in line:  # a value that is no number does not spoil its row
        assert known == [10, 20, 30, 40, 50]
    else:
        assert (known, reader.rejected) == ([10, 20, 30, 50], 1)


def test_bytes_that_are_not_utf8_are_left_out(reader: MetricsReader, path: Path):
    with path.open("ab") as file:
        file.write(b'{"step": 40, "\xff": 1}\n')
    append(path, rows(1, start=5))
    assert (steps(reader), reader.rejected) == ([10, 20, 30, 50], 1)


def test_values_that_are_no_numbers_are_left_out(reader: MetricsReader, path: Path):
    append(path, json.dumps({"step": 40, "loss": "low", "flag": True, "list": [1], "grad_norm": 2}) + "\n")
    assert 40 not in values(reader, "loss")
    assert values(reader, "grad_norm") == {40: 2.0}
    assert values(reader, "flag") == values(reader, "list") == {}


def test_a_line_without_end_is_not_kept_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "CHUNK", 1000)
    append(path, "x" * 10_000)
    reader = MetricsReader(lambda: path.open("rb"))
    assert steps(reader) == [10, 20, 30]
    assert reader.offset > 9000
    append(path, "y\n" + rows(1, start=4))
    assert (steps(reader), reader.rejected) == ([10, 20, 30, 40], 1)


def test_pieces_of_any_size_give_the_same_rows(path: Path, monkeypatch: pytest.MonkeyPatch):
    path.write_text(rows(200))
    monkeypatch.setattr(metrics, "CHUNK", 333)
    reader = MetricsReader(lambda: path.open("rb"))
    assert steps(reader) == list(range(10, 2010, 10))


def test_rows_are_the_same_one_by_one_and_all_together(path: Path, monkeypatch: pytest.MonkeyPatch):
    path.write_text(rows(50) + '{"step": 505, "valid_loss": 3, "loss": NaN}\n' + rows(50, start=51, lr=1))
    together = MetricsReader(lambda: path.open("rb"))
    one_by_one = MetricsReader(lambda: path.open("rb"))
    names = ("loss", "tokens", "valid_loss", "lr")
    plain: list[bool] = []
    whole = MetricsReader._add_all
    monkeypatch.setattr(MetricsReader, "_add_all", lambda self, rows: plain.append(whole(self, rows)) or plain[-1])
    together.refresh()
    assert plain == [True]
    monkeypatch.setattr(MetricsReader, "_add_all", lambda self, rows: False)
    one_by_one.refresh()
    np.testing.assert_equal(together.series(*names), one_by_one.series(*names))
    assert together.names() == one_by_one.names()
    assert len(together.series("valid_loss")[1][0][0]) == 1


def test_the_number_of_metrics_is_bounded(reader: MetricsReader, path: Path):
    many = {f"metric {number}": number for number in range(1000)}
    append(path, json.dumps({"step": 40, "n" * 1000: 1} | many) + "\n")
    reader.refresh()
    assert len(reader.names()) == metrics.MAX_METRICS
    assert "n" * 1000 not in reader.names()


def test_the_last_row_is_read_from_the_end_of_the_file(path: Path):
    path.write_text('{"step": 1, "early": 1}\n' + rows(2000, loss=2.5) + '{"step": 20010, "valid_loss": 3}\n{"step": 2')
    assert path.stat().st_size > metrics.TAIL
    with path.open("rb") as file:
        found = last_row(file)
    assert (found["step"], found["loss"], found["valid_loss"]) == (20010, 2.5, 3)
    assert "early" not in found


def test_an_empty_file_has_no_last_row(path: Path):
    path.write_text("")
    with path.open("rb") as file:
        assert last_row(file) == {}
