"""What lies beside the weights in a Hugging Face folder: tokenizer, special tokens, where a text begins and ends.

An imported run keeps these files as they were, in RUN/huggingface, so that an export gives back what came in; the run
itself goes by RUN/tokenizer.json and by `tokenizer.eot_token` and `tokenizer.stop_tokens` of its config.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from lmcore.config import TokenizerConfig
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.parsing import read_json

__all__ = ["Companions", "read_companions", "read_fields", "read_tokenizer", "token_ids"]

FOLDER = "huggingface"
"""Where a run folder keeps them."""
NAMES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "tokenizer.model", "chat_template.jinja", "chat_template.json"),
)
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Companions:
    """The files, by name."""

    files: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of_run(cls, run_dir: Path) -> "Companions":
        """Those that a run keeps; none where it was not imported."""
        folder = run_dir / FOLDER
        return cls({name: (folder / name).read_bytes() for name in NAMES if (folder / name).exists()})

    def keep(self, run_dir: Path) -> None:
        """Write them into a run folder."""
        if self.files:
            (run_dir / FOLDER).mkdir()
            for name, content in self.files.items():
                (run_dir / FOLDER / name).write_bytes(content)

    def special_ids(self) -> dict[str, Any]:
        """Fields of `config.json` that name the tokens at which a text begins and ends."""
        fields = json.loads(self.files.get("config.json", b"{}"))
        return {name: fields[name] for name in SPECIAL_IDS if name in fields}

    def write(self, folder: Path) -> None:
        """Write all but `config.json`, which holds the model's shape too, into a Hugging Face folder."""
        for name, content in self.files.items():
            if name != "config.json":
                (folder / name).write_bytes(content)


def read_companions(folder: Path) -> Companions:
    """Read what a Hugging Face folder has of them."""
    return Companions({name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()})


def read_fields(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read a JSON file of fields; what is wrong with it is added to `problems`."""
    if not path.exists():
        problems.append(f"{path.name} is missing")
        return {}
    try:
        found = read_json(path)
    except UserError as error:
        problems.append(str(error))
        return {}
    if not isinstance(found, dict):
        problems.append(f"{path.name} holds {type(found).__name__}, expected fields")
        return {}
    return found


def token_ids(name: str, value: Any, problems: list[str]) -> list[int]:
    """The ids in a field that holds one, several or null; negative ones, which no token has, are left out."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int for number in values):
        problems.append(f"{name}: found {value!r}, expected an integer or a list of integers")
        return []
    return [number for number in values if number >= 0]


def read_tokenizer(
    folder: Path, fields: Mapping[str, Any], problems: list[str]
) -> tuple[Tokenizer, TokenizerConfig] | None:
    """Read a folder's tokenizer, and the config that names it; None where there is none.

    What is put before a text is what the template of `tokenizer.json` says, as in transformers 5, which follows
    `add_bos_token` of `tokenizer_config.json` only where there is no `tokenizer.json`.

    Args:
        folder: a Hugging Face model.
        fields: its `config.json`.
        problems: what is wrong is added here.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    settings, generation = (
        read_fields(folder / name, problems) if (folder / name).exists() else {}
        for name in ("tokenizer_config.json", "generation_config.json")
    )
    eos = _content(settings.get("eos_token"))
    if not isinstance(eos, str | None):
        problems.append(f"{folder / 'tokenizer_config.json'}: eos_token is {eos!r}, expected a string")
        return None
    ids = [i for given in (fields, generation) for i in token_ids("eos_token_id", given.get("eos_token_id"), problems)]
    try:
        named = _named(path, ids, problems)
        tokenizer = Tokenizer.load(path, eos or (named[0] if named else None), named)
    except UserError as error:
        problems.append(str(error))
        return None
    eot = tokenizer.inner.id_to_token(tokenizer.eot_id)
    assert eot is not None
    stops = [token for token in dict.fromkeys(named) if token != eot]
    return tokenizer, TokenizerConfig(kind="file", file=str(path), eot_token=eot, stop_tokens=stops)


def _named(path: Path, ids: list[int], problems: list[str]) -> list[str]:
    """The tokens of these ids; none where the tokenizer is damaged, of which our loader says more."""
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # the library's own class
        return []
    tokens = []
    for number in ids:
        token = inner.id_to_token(number) if number < 2**32 else None
        if token is None:
            problems.append(f"eos_token_id: found {number}, which no token of tokenizer.json has")
        else:
            tokens.append(token)
    return tokens


def _content(token: Any) -> Any:
    """The text of a token in `tokenizer_config.json`, which may have fields of its own."""
    return token.get("content") if isinstance(token, dict) else token
