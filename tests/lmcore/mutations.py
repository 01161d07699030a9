"""Config files that are almost valid, or not at all, for Hypothesis."""

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from lmcore.config import Config, flatten, to_dict, to_yaml

VALID = to_yaml(Config())
PLAIN = json.dumps(to_dict(Config()))
NAMES = [name for name, _ in flatten(Config())]

NUMBERS = st.one_of(st.integers(-(10**30), 10**30), st.floats(), st.sampled_from([0, 1, -1, 2**63, 10**12]))
WORDY = st.one_of(st.text(max_size=8), st.sampled_from(["false", "1e-3", "0100", "auto"]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDY)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=3)


@st.composite
def changed_fields(draw: st.DrawFn, plain: str = PLAIN) -> dict[str, Any]:
    """A valid config in which a few fields have any value, or a group is something else.

    Args:
        draw: Hypothesis's.
        plain: the valid config, as JSON with all fields.
    """
    config: dict[str, Any] = json.loads(plain)
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4)):
        group, _, field = name.rpartition(".")
        place = config[group] if group else config
        if not isinstance(place, dict) or draw(st.integers(0, 9)) == 0:
            config[group or field] = draw(VALUES)
        else:
            place[draw(st.text(max_size=5)) if draw(st.integers(0, 9)) == 0 else field] = draw(VALUES)
    return config


PIECES = ["\n", "  ", "\t", ":", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "!!x ", "'", '"', "|\n", "#", "%", "? "]
PIECES += ["---\n", "\0", "\ufeff", "1e999"]


@st.composite
def changed_text(draw: st.DrawFn, valid: str = VALID) -> str:
    """A valid file with pieces of YAML, or of itself, put in, repeated or cut out."""
    text = valid
    for _ in range(draw(st.integers(1, 6))):
        begin = draw(st.integers(0, len(text)))
        end = min(len(text), begin + draw(st.integers(0, 60)))
        put = draw(st.sampled_from(PIECES) | st.text(max_size=3) | st.just(text[begin:end] * 2))
        text = text[:begin] + put * draw(st.sampled_from([1, 1, 1, 80, 2000])) + text[end:]
    return text


def write(path: Path, drawn: str | dict[str, Any]) -> None:
    """Write a drawn config, whatever characters it has."""
    text = drawn if isinstance(drawn, str) else yaml.safe_dump(drawn, allow_unicode=True)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
