"""Files beside the weights of a Hugging Face folder: tokenizer, special tokens, generation settings.

An imported run stores these files unchanged, in RUN/huggingface, so that an export writes the same files again; the run
itself uses RUN/tokenizer.json, and `tokenizer.eot_token` and `tokenizer.stop_tokens` of its config.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers

from lmcore.config import TokenizerConfig
from lmcore.data.chat import SETTINGS, read_template
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.files import check_sums, write_sums
from lmcore.parsing import read_json

__all__ = ["Companions", "read_companions", "read_fields", "read_tokenizer", "token_ids"]

FOLDER = "huggingface"
"""Subfolder of a run in which they are stored."""
NAMES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "tokenizer.model", "chat_template.jinja", "chat_template.json"),
    *("vocab.json", "merges.txt"),
)
TEMPLATES = "additional_chat_templates"
"""Subfolder of a Hugging Face folder, with a file for each further chat template."""
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Companions:
    """The files' contents, by file name."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    template: str | None = None
    """Chat template that a run was trained with, where that is not the files' own."""

    @classmethod
    def of_run(cls, run_dir: Path, verify: bool = True) -> "Companions":
        """Read those that are stored in a run; none where it was not imported.

        Args:
            run_dir: run folder.
            verify: whether to compare them with their checksums.

        Raises:
            Damaged: one is missing or has changed.
        """
        folder = run_dir / FOLDER
        if verify:
            for place in (folder, folder / TEMPLATES):
                check_sums(place)
        imported = cls({name: (folder / name).read_bytes() for name in _names(folder)})
        trained = read_template(run_dir) if (run_dir / SETTINGS).exists() else None
        if trained is None or trained.source == imported.chat_template():
            return imported
        return replace(imported, template=trained.source)

    def keep(self, run_dir: Path) -> None:
        """Store them in a run folder."""
        if self.files:
            (run_dir / FOLDER).mkdir()
            _write(run_dir / FOLDER, self.files)
            write_sums(run_dir / FOLDER)

    def special_ids(self) -> dict[str, Any]:
        """Return the fields of `config.json` that name the bos, eos and pad tokens."""
        return {name: value for name, value in self.config().items() if name in SPECIAL_IDS}

    def with_stops(self, tokenizer: Tokenizer) -> "Companions":
        """Return the same files; `generation_config.json` names other tokens that end a text where the run's differ."""
        places = (self._fields("config.json"), self._fields("generation_config.json"))
        named = {i for place in places for i in token_ids("eos_token_id", place.get("eos_token_id"), [])}
        if not self.files or named | {tokenizer.eot_id} == tokenizer.stop_ids:
            return self
        stops = [tokenizer.eot_id, *sorted(tokenizer.stop_ids - {tokenizer.eot_id})]
        text = json.dumps(places[1] | {"eos_token_id": stops}, indent=2, ensure_ascii=False) + "\n"
        return replace(self, files={**self.files, "generation_config.json": text.encode()})

    def config(self) -> dict[str, Any]:
        """Return the fields of `config.json`; none where there is no such file."""
        return self._fields("config.json")

    def chat_template(self) -> str | None:
        """Return the template that turns a conversation into text; None where the model has none."""
        if self.template is not None:
            return self.template
        if "chat_template.jinja" in self.files:
            return self.files["chat_template.jinja"].decode()
        for name in ("chat_template.json", "tokenizer_config.json"):
            template = self._fields(name).get("chat_template")
            if isinstance(template, list):  # of several, by name
                template = {each["name"]: each["template"] for each in template}.get("default")
            if template is not None:
                return template
        return None

    def write(self, folder: Path) -> None:
        """Write all but `config.json`, which also describes the model's shape, into a Hugging Face folder."""
        _write(folder, {name: content for name, content in self.files.items() if name != "config.json"})
        if self.template is not None:  # transformers reads this file before all others
            (folder / "chat_template.jinja").write_text(self.template, encoding="utf-8")

    def _fields(self, name: str) -> dict[str, Any]:
        try:
            return json.loads(self.files.get(name, b"{}"))
        except ValueError as error:
            raise UserError(f"{name}: cannot be read as JSON ({error})") from error


def _names(folder: Path) -> list[str]:
    """Return the names, relative to a folder, of the files in it that are kept."""
    templates = sorted(path.name for path in (folder / TEMPLATES).glob("*.jinja"))
    return [name for name in (*NAMES, *(f"{TEMPLATES}/{name}" for name in templates)) if (folder / name).is_file()]


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    if (folder / TEMPLATES).exists():
        write_sums(folder / TEMPLATES)


def read_companions(folder: Path) -> Companions:
    """Read those that a Hugging Face folder has.

    Raises:
        UserError: one is a link that leads outside of the folder, and not to the blobs of the hub's cache: it would be
            copied into every export.
    """
    blobs = folder.resolve().parent.parent / "blobs"
    names = _names(folder)
    for path in (folder / name for name in (*names, *(name for name in NAMES if name not in names))):
        target = path.resolve()
        if path.is_symlink() and not (target.is_relative_to(folder.resolve()) or target.parent == blobs):
            raise UserError(f"{path}: is a link to {target}, outside of {folder}; replace it by the file")
    return Companions({name: (folder / name).read_bytes() for name in names})


def read_fields(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read a JSON object; problems with the file are added to `problems`."""
    if not path.exists():
        problems.append(f"{path.name} is missing")
        return {}
    try:
        fields = read_json(path)
    except UserError as error:
        problems.append(str(error))
        return {}
    if not isinstance(fields, dict):
        problems.append(f"{path.name} holds {type(fields).__name__}, expected fields")
        return {}
    return fields


def token_ids(name: str, value: Any, problems: list[str]) -> list[int]:
    """Return the ids in a field that holds one, several or null, without negative ones, which no token has.

    Args:
        name: of the field, for messages.
        value: of the field.
        problems: problems with it are added here.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int for number in values):
        problems.append(f"{name}: found {value!r}, expected an integer or a list of integers")
        return []
    return [number for number in values if number >= 0]


def read_tokenizer(
    folder: Path, fields: Mapping[str, Any], problems: list[str]
) -> tuple[Tokenizer, TokenizerConfig] | None:
    """Read a folder's tokenizer, and the config that names it; None where there is none.

    Tokens put before a text follow the template of `tokenizer.json`, as in transformers 5, which follows
    `add_bos_token` of `tokenizer_config.json` only where there is no `tokenizer.json`.

    Args:
        folder: a Hugging Face model.
        fields: its `config.json`.
        problems: problems with the files are added here.
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
    ids = [
        i for source in (fields, generation) for i in token_ids("eos_token_id", source.get("eos_token_id"), problems)
    ]
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
    """Return the tokens of these ids; none where the tokenizer is damaged, which `Tokenizer.load` reports."""
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
    """Return the text of a token in `tokenizer_config.json`, where it may be an object with further fields."""
    return token.get("content") if isinstance(token, dict) else token
