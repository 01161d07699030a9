"""What a run and its baseline share: whole documents, one stream, and a process whose mistakes are one line."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from lmcore.data.readers import Piece
from lmcore.errors import UserError
from lmcore.run.baseline import Measured, as_stream, measure_baseline, whole_documents


def test_bits_per_byte_are_the_nats_of_the_whole_text():
    measured = Measured(parameters=1, context=8, targets=3, unknown=0, nats=8 * math.log(2))
    assert measured.bits_per_byte(4) == pytest.approx(2)


def test_pieces_are_joined_and_only_the_last_document_may_not_end():
    pieces = [Piece("a", False), Piece("b", True), Piece("c", True), Piece("d", False), Piece("e", False)]
    assert whole_documents(pieces) == [("ab", True), ("c", True), ("de", False)]
    assert whole_documents(pieces[:3]) == [("ab", True), ("c", True)]
    assert whole_documents([]) == []


def test_a_stream_begins_with_end_of_text_and_counts_what_is_in_it():
    parts = [np.array([5, 7, 0], np.uint32), np.array([7, 0, 6], np.uint32)]
    stream = as_stream(parts, 0, 7, 11, prefix=(5,))
    assert stream.ids.tolist() == [0, 5, 7, 0, 7, 0, 6]
    assert (stream.documents, stream.unknown, stream.bytes, stream.prefix) == (2, 2, 11, (5,))
    assert as_stream(parts, 0, None, 11).unknown == 0


ANSWER = """
import json, sys
request = json.load(sys.stdin)
print("loading")
if request["model"] == "absent":
    sys.exit("a warning\\nerror: there is no such model\\n")
targets = sum(len(text) + ends for text, ends in request["documents"])
print(json.dumps(dict(parameters=1, context=request["context"] - 1, targets=targets, unknown=0, nats=2.0)))
"""


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_the_process_reads_the_request_and_its_last_line_is_the_answer_or_the_reason(tmp_path: Path, monkeypatch):
    (tmp_path / "miniature.py").write_text(ANSWER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pieces = [Piece("é", False), Piece("b", True), Piece("c", False)]
    found = measure_baseline("miniature", "any", pieces, context=8, batch_size=2, device="cpu")
    assert found == Measured(parameters=1, context=7, targets=4, unknown=0, nats=2.0)
    with pytest.raises(UserError, match=r"^--baseline: there is no such model$"):
        measure_baseline("miniature", "absent", pieces, context=8, batch_size=2, device="cpu")
