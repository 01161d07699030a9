"""Chat templates are rendered as transformers renders them, and the assistant's part is found or refused."""

import json

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from lmcore.data.chat import CHATML, ChatTemplate, find_template, read_template
from lmcore.errors import UserError

TURNS = [
    {"role": "system", "content": "Be <kind>."},
    {"role": "user", "content": "Who is there?"},
    {"role": "assistant", "content": " A fox. "},
    {"role": "user", "content": "Äh?\n"},
    {"role": "assistant", "content": "An owl."},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
    {%- set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{%- else %}{% set rest = messages %}{% set system = false %}{% endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (system ~ ' ' if loop.index0 == 0 and system else '') }}
        {{- message['content'].strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'].strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}"""
BLOCKS = """{% for message in messages %}
{{- '[' + message['role'] + ']' }}
{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{%- else %}{{ message['content'] }}{% if loop.last %}{% break %}{% endif %}{% endif %}
{%- endfor %}{{ messages | tojson }}{{ tools is none }}"""
FORGETS = """{% for m in messages %}[{{ m['role'] }}]
    {%- if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""


@pytest.mark.parametrize("source", [CHATML, LLAMA2, BLOCKS])
def test_a_conversation_is_rendered_as_transformers_does(source: str):
    template = ChatTemplate(source, TOKENS)
    for prompt, count in ((False, 5), (True, 4), (False, 2)):
        expected, _ = render_jinja_template(
            [TURNS[:count]], chat_template=source, add_generation_prompt=prompt, **TOKENS
        )
        assert template.render(TURNS[:count], prompt) == expected[0]


@pytest.mark.parametrize(
    ("source", "own"),
    [
        (CHATML, [" A fox. <|im_end|>", "An owl.<|im_end|>"]),
        (LLAMA2, [" A fox. </s>", " An owl. </s>"]),
        (BLOCKS, [" A fox. </s>", "An owl.</s>"]),
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}", ["  A fox. \n", " An owl.\n"]),
    ],
)  # fmt: skip
def test_the_assistants_part_ends_with_what_ends_its_turn(source: str, own: list[str]):
    text, spans = ChatTemplate(source, TOKENS).assistant_spans(TURNS)
    assert [text[slice(*span)] for span in spans] == own
    assert text == ChatTemplate(source, TOKENS).render(TURNS)


def test_generation_blocks_are_those_that_transformers_finds():
    expected, indices = render_jinja_template(
        [TURNS], chat_template=BLOCKS, return_assistant_tokens_mask=True, **TOKENS
    )
    assert ChatTemplate(BLOCKS, TOKENS).assistant_spans(TURNS) == (expected[0], [tuple(span) for span in indices[0]])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FORGETS, "writes the turns up to message 3 differently when more follow"),
        ("{{ messages", r"line 1 is not valid Jinja \(unexpected end of template"),
        ("{{ messages[9].role.upper() }}", "does not render the conversation .*has no element 9"),
        ("{{ raise_exception('no system,\nplease') }}", r"does not render the conversation \(no system, please\)"),
        ("{{ messages.__class__.__mro__ }}", r"does not render the conversation \(.*unsafe"),
        ("{{ messages.append(1) }}", r"does not render the conversation \(.*unsafe"),
    ],
)
def test_a_template_that_does_not_serve_is_one_line(source: str, message: str):
    with pytest.raises(UserError, match=f"^data.chat_template: .*{message}") as caught:
        ChatTemplate(source).assistant_spans(TURNS)
    assert "\n" not in str(caught.value)


def test_a_template_is_found_in_the_setting_beside_the_tokenizer_or_is_chatml(tmp_path):
    assert find_template(None, None).source == CHATML
    assert find_template("{{ messages }}", None).source == "{{ messages }}"
    file = tmp_path / "mine.jinja"
    file.write_text(LLAMA2)
    assert find_template(str(file), None) == ChatTemplate(LLAMA2, {}, str(file))
    with pytest.raises(UserError, match="chat_template: found no file 'absent', expected one, or a template itself"):
        find_template("absent", None)
    tokenizer = str(tmp_path / "tokenizer.json")
    assert find_template(None, tokenizer).source == CHATML
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "chat_template": several}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert find_template(None, tokenizer) == ChatTemplate("d", TOKENS, str(tmp_path / "tokenizer_config.json"))
    assert find_template("{{ 1 }}", tokenizer) == ChatTemplate("{{ 1 }}", TOKENS), "with its tokens"
    (tmp_path / "chat_template.jinja").write_text("j")
    assert find_template(None, tokenizer).source == "j"
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config.json: found list, expected fields"):
        find_template(None, tokenizer)


def test_a_saved_template_is_read_again_and_an_imported_run_has_its_own(tmp_path):
    assert read_template(tmp_path) is None
    template = ChatTemplate(LLAMA2, TOKENS)
    (tmp_path / "huggingface").mkdir()
    template.save(tmp_path / "huggingface")
    found = read_template(tmp_path)
    assert (found.source, found.tokens) == (LLAMA2, TOKENS)
    ChatTemplate(CHATML).save(tmp_path)
    assert read_template(tmp_path).source == CHATML, "that of its own training comes first"
