"""A tokenizer as the fields of a GGUF file, where llama.cpp has one that gives the same ids.

llama.cpp's converter recognizes a byte-level BPE by the ids of a test string, which a vocabulary that was trained here
never matches; here it is recognized by the pipeline in `tokenizer.json`.
"""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import pre_tokenizers

from lmcore.data.tokenizer import BYTE, Tokenizer
from lmcore.errors import UserError

__all__ = ["NORMAL", "UNUSED", "tokenizer_fields"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE_TOKEN = range(1, 7)
"""`gguf.TokenType`."""

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
SPLITS = {LLAMA3: "llama-bpe", QWEN2: "qwen2"}
"""Regular expression that splits text into words -> llama.cpp's name for it."""

NEVER = "ĀĀ Ā"
"""A merge that never applies, for a tokenizer without any: llama.cpp wants one, and nothing makes its left half."""

Fields = dict[str, Any]


def tokenizer_fields(tokenizer: Tokenizer, vocab_size: int) -> Fields:
    """Return what a GGUF file says of a tokenizer, by the part of the field's name after `tokenizer.ggml.`.

    Args:
        tokenizer: the tokenizer.
        vocab_size: number of the model's embeddings; those that no token has become unused tokens.

    Raises:
        UserError: llama.cpp has no tokenizer that gives the same ids.
    """
    state = json.loads(tokenizer.to_json())
    model = state["model"]
    if model.get("type", "BPE") != "BPE":
        raise _refusal(f"model.type {model['type']!r}", "'BPE'")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _refusal(f"model.{name} {model[name]!r}", "none")
    if len(tokenizer.prefix_ids) > 1:
        raise _refusal(f"{len(tokenizer.prefix_ids)} tokens before each text", "at most one")
    if tokenizer.encode("x") != tokenizer.inner.encode("x").ids[len(tokenizer.prefix_ids) :]:
        raise _refusal("tokens after each text", "none")
    fields = _sentencepiece(state) if model.get("byte_fallback") else _byte_level(state)
    return fields | _tokens(tokenizer, model, vocab_size) | _special(tokenizer)


def _refusal(found: str, expected: str) -> UserError:
    return UserError(
        f"tokenizer.json: found {found}, expected {expected}, since llama.cpp has no other tokenizer that gives the "
        "same ids; keep the model in another format"
    )


def _byte_level(state: Mapping[str, Any]) -> Fields:
    """Return the fields of a BPE over bytes."""
    model, merges = state["model"], [_pair(merge) for merge in state["model"]["merges"]]
    if state["normalizer"] is not None:
        raise _refusal(f"normalizer {state['normalizer']['type']!r}", "none")
    steps = state["pre_tokenizer"] or {"type": None}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    *first, last = steps
    kinds = " and ".join(str(step["type"]) for step in steps)
    pre = _pre_tokenizer(first, last, bool(merges))
    if pre is None or last["type"] != "ByteLevel" or last["add_prefix_space"]:
        raise _refusal(f"pre_tokenizer {kinds}", "ByteLevel as GPT-2, Llama 3 or Qwen 2 have it (kind bpe or bytes)")
    if missing := set(pre_tokenizers.ByteLevel.alphabet()) - model["vocab"].keys():
        raise _refusal(f"{256 - len(missing)} of 256 bytes in the vocabulary", "all")
    if merges and bool(model.get("ignore_merges")) != (pre == "llama-bpe"):
        raise _refusal(f"model.ignore_merges {model.get('ignore_merges')} with the words of {pre}", "the opposite")
    return {"model": "gpt2", "pre": pre, "merges": [" ".join(pair) for pair in merges] or [NEVER]}


def _pre_tokenizer(first: list[dict[str, Any]], last: dict[str, Any], merges: bool) -> str | None:
    """Return llama.cpp's name for the way that text is split into words; None where it has none."""
    if not first:
        return "gpt-2" if last.get("use_regex") or not merges else None
    [step, *more] = first
    if more:
        return None
    if step["type"] == "Split" and not last.get("use_regex"):
        isolated = step["behavior"] == "Isolated" and not step["invert"]
        return SPLITS.get(step["pattern"].get("Regex", "")) if isolated else None
    return "smollm" if step == {"type": "Digits", "individual_digits": True} and last.get("use_regex") else None


def _pair(merge: Any) -> tuple[str, str]:
    """Return the two parts of a merge, which older files have in one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _sentencepiece(state: Mapping[str, Any]) -> Fields:
    """Return the fields of a BPE over characters with bytes for the others, as SentencePiece makes it.

    llama.cpp joins the pair whose token has the highest score, whatever the pair; the library joins the pair whose
    merge comes first. The two are the same where every pair that makes a token is a merge, and those of a token follow
    one another.
    """
    model = state["model"]
    normalizer = state["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepends = {"type": "Prepend", "prepend": "▁"}
    if steps not in ([prepends, replaces], [replaces]) or state["pre_tokenizer"] is not None:
        what = [step["type"] for step in steps] or (state["pre_tokenizer"] or {}).get("type")
        raise _refusal(f"{what}", "normalizers Prepend and Replace, or Replace alone, and no pre_tokenizer")
    vocab, special = model["vocab"], {token["content"] for token in state["added_tokens"]}
    if missing := [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in vocab]:
        raise _refusal(f"no token {missing[0]}", "one for each byte")
    ranks: dict[str, int] = {}
    pairs = [_pair(merge) for merge in model["merges"]]
    for rank, (left, right) in enumerate(pairs):
        if ranks.setdefault(left + right, rank) != rank and "".join(pairs[rank - 1]) != left + right:
            raise _refusal(f"merges of {left + right!r} that do not follow one another", "them to")
    known = set(pairs)
    for token in vocab.keys() - special:
        for cut in range(1, 0 if BYTE.fullmatch(token) else len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab and (left, right) not in known:
                raise _refusal(f"no merge of {left!r} and {right!r}", "one for each pair that makes a token")
    by_id = {number: token for token, number in vocab.items()}
    return {
        "model": "llama",
        "pre": "default",
        "scores": {number: float(-ranks.get(token, 0)) for number, token in by_id.items()},
        "add_space_prefix": prepends in steps,
    }


def _tokens(tokenizer: Tokenizer, model: Mapping[str, Any], vocab_size: int) -> Fields:
    """Return the text and type of every token; an id without one gets a text that no token has."""
    inner = tokenizer.inner
    added = inner.get_added_tokens_decoder()
    texts, types = [], []
    for number in range(vocab_size):
        text = inner.id_to_token(number)
        if text is None:
            text, kind = f"[PAD{number}]", UNUSED
            while inner.token_to_id(text) is not None:
                text += "]"
        elif number == tokenizer.unk_id:
            kind = UNKNOWN
        elif number in added:
            kind = CONTROL if added[number].special else USER_DEFINED
        else:
            kind = BYTE_TOKEN if model.get("byte_fallback") and BYTE.fullmatch(text) else NORMAL
        texts.append(text)
        types.append(kind)
    return {"tokens": texts, "token_type": types}


def _special(tokenizer: Tokenizer) -> Fields:
    """Return which tokens begin and end a text: llama.cpp stops at `eos`, `eot` and `eom`."""
    stops = [tokenizer.eot_id, *sorted(tokenizer.stop_ids - {tokenizer.eot_id})]
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    if len(stops) > len(names):
        raise UserError(f"tokenizer: found {len(stops)} tokens that end a text, expected at most {len(names)} in GGUF")
    fields: Fields = dict(zip(names, stops))
    fields["bos_token_id"] = tokenizer.prefix_ids[0] if tokenizer.prefix_ids else tokenizer.eot_id
    fields |= {"add_bos_token": bool(tokenizer.prefix_ids), "add_eos_token": False}
    if tokenizer.unk_id is not None:
        fields["unknown_token_id"] = tokenizer.unk_id
    return fields
