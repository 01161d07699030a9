"""What is written by hand is the JSON that a library would write."""

import json
from dataclasses import replace

import pytest

from lmcore.serve.generation import Choice, Generation, Piece, Placed, Prompt
from lmcore.serve.logprobs import LOWEST, Logprob
from lmcore.serve.responses import Chat, Completion, Format
from lmcore.serve.scheduler import Scheduler
from tests.lmcore.serve.test_generation import OPTIONS
from tests.lmcore.serve.toy import Toy, make_served

SERVED = make_served()
TEXT = 'é "quoted" \\ \n\t\u2028\0 <|im_end|> 😀'


def made(kind: type[Format], name: str = "toy", **options: object) -> tuple[Format, Choice]:
    """The answer of a kind to a request with one choice."""
    scheduler = Scheduler(Toy, 1, 1)
    chosen = replace(OPTIONS, **options)
    generation = Generation(
        scheduler, SERVED.tokenizer, SERVED.stop_ids, [Prompt("ab", [97, 98])], chosen, [chosen.max_tokens or 0]
    )
    return kind(generation, name, SERVED.texts), generation.choices[0]


def events(text: str) -> list[dict]:
    assert text.endswith("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-1]]


@pytest.mark.parametrize("kind", [Completion, Chat])
@pytest.mark.parametrize("name", ["toy", 'a"b\\'])
def test_any_text_and_name_survive_a_chunk(kind: type[Format], name: str):
    form, choice = made(kind, name)
    chunks = events(form.chunks([Piece(choice, TEXT, [], None), Piece(choice, "", [], "stop")]))
    assert [chunk["model"] for chunk in chunks] == [name, name]
    first, last = (chunk["choices"][0] for chunk in chunks)
    assert (first["text"] if kind is Completion else first["delta"]["content"]) == TEXT
    assert (first["finish_reason"], last["finish_reason"]) == (None, "stop")


def test_a_chats_last_text_comes_before_its_end():
    form, choice = made(Chat)
    chunks = [chunk["choices"][0] for chunk in events(form.chunks([Piece(choice, "a", [], "length")]))]
    assert [(chunk["delta"], chunk["finish_reason"]) for chunk in chunks] == [({"content": "a"}, None), ({}, "length")]


def test_usage_comes_last_where_it_is_asked_for():
    assert made(Completion)[0].last_chunks() == "data: [DONE]\n\n"
    form, choice = made(Completion, include_usage=True)
    choice.tokens = 3
    event, done = form.last_chunks().split("\n\n")[:-1]
    chunk = json.loads(event.removeprefix("data: "))
    assert (chunk["choices"], done) == ([], "data: [DONE]")
    assert chunk["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_of_tokens_that_read_the_same_the_most_likely_counts():
    form, choice = made(Completion, logprobs=2)
    unknown = SERVED.tokenizer.vocab_size  # of a model with more embeddings than tokens
    top = ((unknown, -0.5), (unknown + 1, -1.5))
    placed = [Placed(Logprob(unknown + 2, -2.5, top), 0)]
    (chunk,) = events(form.chunks([Piece(choice, "", placed, None)]))
    assert chunk["choices"][0]["logprobs"]["top_logprobs"] == [{"": -0.5}]


def test_a_whole_answer_gathers_the_log_probabilities_of_all_pieces():
    form, choice = made(Chat, logprobs=1)
    choice.finish, choice.text = "length", "ab"
    pieces = [
        Piece(choice, "a", [Placed(Logprob(97, -1.0, ((98, -0.5),)), 0)], None),
        Piece(choice, "b", [Placed(Logprob(98, LOWEST), 1)], "length"),
    ]
    content = form.body(pieces)["choices"][0]["logprobs"]["content"]
    assert content == [
        {
            "token": "a",
            "logprob": -1.0,
            "bytes": [97],
            "top_logprobs": [{"token": "b", "logprob": -0.5, "bytes": [98]}],
        },
        {"token": "b", "logprob": LOWEST, "bytes": [98], "top_logprobs": []},
    ]
