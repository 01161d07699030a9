"""YAML and JSON are read as plain values, bounded, without duplicate keys, and every mistake names its line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lmcore.errors import UserError
from lmcore.parsing import MAX_YAML_BYTES, parse_json, parse_scalar, parse_yaml, read_json, read_text, read_yaml


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ('{"a":' * 900 + "1" + "}" * 900, "nested more than 64 deep"),
        ('{"a": 1, "a": 2}', "duplicate key 'a' in one object"),
        ('{"a": ' + "9" * 5000 + "}", "integer string conversion"),
        ('{"a": "\udcff"}', "'utf-8' codec can't decode"),
        ("", "Expecting value"),
    ],
)
def test_json_is_bounded_too(content: str, reason: str, tmp_path: Path):
    (tmp_path / "a.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"a\.json: cannot be read as JSON \(.*\); delete it$") as caught:
        read_json(tmp_path / "a.json", "delete it")
    assert reason in str(caught.value)


JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(JSON)
def test_ordinary_json_is_read_as_ever(value: Any):
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0100", 100),
        ("0x1F", 31),
        ("1_000", 1000),
        ("-7", -7),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("-.INF", -math.inf),
        ("~", None),
        ("", None),
        ("Yes", True),
        ("OFF", False),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0o17", "0o17"),
        ("1__0", "1__0"),
        ("nULL", "nULL"),
    ],
)
def test_a_plain_scalar_has_one_value(text: str, value: object):
    found = parse_scalar(text)
    assert (type(found), found) == (type(value), value)
    assert parse_yaml(f"[{text}]") == ([value] if text else [])


def test_a_quoted_scalar_is_text_and_a_key_is_always_text():
    assert parse_yaml('a: \'1\'\n"b": "yes"\n3: !!str 4\non: no\n') == {"a": "1", "b": "yes", "3": "4", "on": False}


def test_merged_mappings_give_way_to_own_keys_and_to_earlier_ones():
    text = "one: &one {a: 1, b: 1}\ntwo: &two {b: 2, c: 2}\nboth: {c: 3, <<: [*one, *two]}\ntext: {'<<': 4}\n"
    found = parse_yaml(text)
    assert found["both"] == {"a": 1, "b": 1, "c": 3}
    assert found["text"] == {"<<": 4}
    with pytest.raises(yaml.YAMLError, match="line 2: found something else after <<, expected mappings to merge"):
        parse_yaml("a:\n  <<: 3\n")


def test_a_nesting_of_64_is_read_and_one_of_65_is_not():
    for parse, error in ((parse_yaml, yaml.YAMLError), (parse_json, ValueError)):
        assert parse("[" * 64 + "]" * 64)
        with pytest.raises(error, match="nested more than 64 deep"):
            parse("[" * 65 + "1" + "]" * 65)


def test_a_file_that_is_no_yaml_is_named_with_its_kind(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(UserError, match=r"a.yaml: cannot be read as a plan \(duplicate key 'a', lines 1 and 3; keep"):
        read_yaml(path, "a plan")
    with pytest.raises(UserError, match=r"none.yaml: cannot be read as YAML \(.*No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_a_file_is_read_up_to_its_limit_without_a_byte_order_mark(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert read_text(path, limit=6) == "abc"
    with pytest.raises(ValueError, match="it has more than 5 bytes"):
        read_text(path, limit=5)
    path.write_bytes(b" " * (MAX_YAML_BYTES + 1))
    with pytest.raises(UserError, match=r"it has more than 4,194,304 bytes"):
        read_yaml(path)
