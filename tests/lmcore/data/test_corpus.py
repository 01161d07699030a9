"""Training and held-out documents are disjoint, nothing is lost, and their number meets the fraction."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tests.lmcore.data.documents import EOT, opened


@given(st.integers(2, 60), st.floats(0.001, 0.999), st.integers(0, 70))
def test_held_out_documents_are_disjoint_and_meet_the_fraction(tmp_path_factory, count, fraction, cap):
    path = tmp_path_factory.mktemp("split") / "a.txt"
    numbers = list(map(str, range(count)))
    path.write_text(EOT.join(numbers))
    kept, held = opened(path.parent, files=["a.txt"], valid_fraction=fraction, max_documents=cap)
    assert kept
    assert held
    read_to = max(map(int, kept + held)) + 1
    assert sorted(kept + held, key=int) == numbers[:read_to], "nothing lost, nothing twice"
    if cap == 0:
        assert read_to == count
        assert len(held) == max(1, int(count * Fraction(str(fraction))))
    else:
        assert len(kept) <= cap


def test_every_twentieth_document_is_held_out(tmp_path):
    (tmp_path / "a.txt").write_text(EOT.join(map(str, range(65))))
    assert opened(tmp_path, files=["a.txt"])[1] == ["19", "39", "59"]
    assert opened(tmp_path, files=["a.txt"], max_documents=30)[1] == ["19"]
    assert opened(tmp_path, files=["a.txt"], max_documents=3) == (["0", "1", "2"], ["3"])


def test_a_single_document_gives_its_last_characters(tmp_path):
    text = "é" * 70 + "\n" + "b" * 29
    (tmp_path / "a.txt").write_text(text)
    assert opened(tmp_path, files=["a.txt"], valid_fraction=0.1) == ([text[:90]], [text[90:]])
    assert opened(tmp_path, files=["a.txt"], valid_fraction=0.0001) == ([text[:99]], [text[99:]])
