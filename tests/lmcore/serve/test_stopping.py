"""Stop strings: what is passed on does not depend on how the text is divided, and never begins a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from lmcore.serve.stopping import Stopper

ALPHABET = "ab"


def fed(stops: list[str], parts: list[str]) -> tuple[list[str], bool]:
    stopper = Stopper(stops)
    return [*map(stopper.feed, parts), stopper.flush()], stopper.stopped


def first_stop(text: str, stops: list[str]) -> int | None:
    """Where the first stop string to be complete begins, found by looking at every beginning of the text."""
    for end in range(len(text) + 1):
        ends = [stop for stop in stops if text[:end].endswith(stop)]
        if ends:
            return end - max(map(len, ends))
    return None


@given(
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3),
    parts=st.lists(st.text(ALPHABET, max_size=4), max_size=8),
)
def test_the_text_before_the_first_stop_string_is_passed_on_however_it_is_divided(stops, parts):
    text = "".join(parts)
    cut = first_stop(text, stops)
    passed, stopped = fed(stops, parts)
    assert ("".join(passed), stopped) == (text[:cut], cut is not None)


@given(
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=4), min_size=1, max_size=3),
    parts=st.lists(st.text(ALPHABET, min_size=1, max_size=3), min_size=1, max_size=8),
)
def test_text_is_held_back_just_while_it_may_become_a_stop_string(stops, parts):
    stopper, passed, text = Stopper(stops), "", ""
    for part in parts:
        text += part
        passed += stopper.feed(part)
        if stopper.stopped:
            return
        held = text[len(passed) :]
        may_begin = [stop for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
        assert held == "" or any(stop.startswith(held) for stop in may_begin)
        longest = max((size for s in stops for size in range(1, len(s)) if text.endswith(s[:size])), default=0)
        assert len(held) == longest


def test_nothing_is_passed_on_after_a_stop_string():
    assert fed(["\n\n"], ["one\n", "\ntwo", "three"]) == (["one", "", "", ""], True)


def test_what_only_began_a_stop_string_is_passed_on_at_the_end():
    assert fed(["END"], ["the EN"]) == (["the ", "EN"], False)
