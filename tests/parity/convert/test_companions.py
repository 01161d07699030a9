"""A Hugging Face folder comes in whole and goes out as it was: text, special tokens, and what is wrong told by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import jaxlm.evaluate
import jaxlm.generate
import torchlm.evaluate
import torchlm.generate
from lmcore import config as configs
from lmcore import parsing
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.run.checkpoints import find_checkpoint
from lmcore.run.folder import load_run
from parity.convert import companions
from parity.convert.conversion import convert, main
from parity.convert.huggingface import read_folder
from torchlm.engine import Engine

PROMPT = "Once upon a time"
GENERATE = {"jax": jaxlm.generate.main, "torch": torchlm.generate.main}
EVALUATE = {"jax": jaxlm.evaluate.main, "torch": torchlm.evaluate.main}
SETTINGS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}


@pytest.fixture
def folder(tmp_path: Path, llama_tokenizer: str) -> Path:
    """A small Llama with random weights, large enough that greedy text varies, as the hub has them."""
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=340, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, initializer_range=0.4, **shape
    )
    path = tmp_path / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    (path / "tokenizer.json").write_text(llama_tokenizer, encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(SETTINGS | {"add_bos_token": True}))
    (path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return path


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def theirs(folder: Path, tokens: int) -> tuple[list[int], str]:
    """Greedy text of transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(PROMPT, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=tokens, do_sample=False)[0].tolist()
    return ids["input_ids"][0].tolist(), tokenizer.decode(written, skip_special_tokens=True)


def test_stored_files_that_have_changed_are_not_exported(folder: Path, tmp_path: Path):
    run = convert(folder, "torch", tmp_path / "run")
    edit(run / "huggingface" / "tokenizer_config.json", padding_side="right")
    with pytest.raises(UserError, match=r"huggingface/tokenizer_config.json: is damaged .*; restore it, or delete "):
        convert(run, "hf", tmp_path / "out")
    convert(run, "hf", tmp_path / "out", verify=False)


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_ids_text_and_files_are_those_of_transformers(framework: Any, folder: Path, tmp_path: Path, capsys: Any):
    ids, text = theirs(folder, 40)
    run = convert(folder, framework, tmp_path / "run")
    _, tokenizer = load_run(find_checkpoint(run))
    assert tokenizer.encode_prompt(PROMPT) == ids
    assert ids[0] == 1
    capsys.readouterr()
    assert GENERATE[framework]([str(run), "--prompt", PROMPT, "--temperature=0", "--max_tokens=40"]) == 0
    assert capsys.readouterr().out == f"{text}\n"
    back = convert(run, "hf", tmp_path / "back")
    for name in companions.NAMES:
        if (folder / name).exists() and name != "config.json":
            assert (back / name).read_bytes() == (folder / name).read_bytes(), name
    assert {path.name for path in back.iterdir()} == {path.name for path in folder.iterdir()} | {"SHA256SUMS"}
    before, after = (json.loads((place / "config.json").read_text()) for place in (folder, back))
    assert [after.get(name) for name in companions.SPECIAL_IDS] == [before.get(name) for name in companions.SPECIAL_IDS]
    assert theirs(back, 40) == (ids, text)


def test_the_files_go_along_between_the_twins(folder: Path, tmp_path: Path):
    there = convert(convert(folder, "torch", tmp_path / "torch"), "jax", tmp_path / "jax")
    back = convert(there, "hf", tmp_path / "back")
    assert (back / "special_tokens_map.json").read_bytes() == (folder / "special_tokens_map.json").read_bytes()


@pytest.mark.parametrize("place", ["config.json", "generation_config.json"])
def test_a_text_ends_at_any_of_several_tokens(place: str, folder: Path, tmp_path: Path, capsys: Any):
    _, whole = theirs(folder, 40)
    tokenizer = Tokenizer.load(folder / "tokenizer.json", "</s>")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float()
    prompt = torch.tensor([tokenizer.encode_prompt(PROMPT)])
    stop = model.generate(prompt, max_new_tokens=10, do_sample=False)[0, -1].item()
    edit(folder / place, eos_token_id=[2, stop, 300])
    run = convert(folder, "torch", tmp_path / "run")
    named = configs.load(run / "config.yaml").tokenizer
    assert named.eot_token == "</s>"
    assert named.stop_tokens == [tokenizer.inner.id_to_token(i) for i in (stop, 300)]
    capsys.readouterr()
    assert torchlm.generate.main([str(run), "--prompt", PROMPT, "--temperature=0", "--max_tokens=40"]) == 0
    shown = capsys.readouterr().out.removesuffix("\n")
    assert whole.startswith(shown)
    assert len(shown) < len(whole)
    back = convert(run, "hf", tmp_path / "back")
    assert json.loads((back / place).read_text())["eos_token_id"] == [2, stop, 300]


@pytest.mark.parametrize("wanted", [True, False, None])
@pytest.mark.parametrize("template", [True, False])
def test_the_template_says_what_comes_first_as_in_transformers(template: bool, wanted: bool | None, folder: Path):
    settings = SETTINGS if wanted is None else SETTINGS | {"add_bos_token": wanted}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if not template:
        edit(folder / "tokenizer.json", post_processor=None)
    tokenizer = read_folder(folder).tokenizer
    assert tokenizer is not None
    assert (tokenizer.encode_prompt(PROMPT)[0] == 1) is template
    assert transformers.AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"] == tokenizer.encode_prompt(PROMPT)


def weights(folder: Path, **changed: np.ndarray) -> None:
    save_file(
        load_file(folder / "model.safetensors") | changed, folder / "model.safetensors", metadata={"format": "pt"}
    )


def refusal(folder: Path) -> str:
    try:
        read_folder(folder)
    except UserError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_that_are_no_numbers_are_counted_by_name(folder: Path, tmp_path: Path, dtype: type, capsys: Any):
    norm = np.ones(32, dtype)
    norm[[3, 5, 9]] = np.nan, np.inf, -np.inf
    weights(folder, **{"model.norm.weight": norm})
    assert main([str(folder), "--to=torch", f"--out={tmp_path / 'run'}"]) == 2
    assert "model.norm.weight: found 3 values that are NaN or infinite, expected none" in capsys.readouterr().err


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_model_of_nan_is_told_with_exit_code_1(
    framework: Any, folder: Path, tmp_path: Path, capsys: Any, monkeypatch
):
    monkeypatch.setattr(np, "isfinite", lambda values: np.ones(np.shape(values), bool))
    weights(folder, **{"model.norm.weight": np.full(32, np.nan, np.float32)})
    run = convert(folder, framework, tmp_path / "run")
    (tmp_path / "text.txt").write_text("Once upon a time there was a fox.")
    assert EVALUATE[framework]([str(run), "--data.files", str(tmp_path / "text.txt")]) == 1
    assert "the loss is nan: weights are not finite" in capsys.readouterr().err
    assert GENERATE[framework]([str(run), "--max_tokens=5"]) == 1
    assert "gives NaN for every token" in capsys.readouterr().err


def test_an_index_stays_in_its_folder_and_links_of_a_plain_name_are_followed(folder: Path, tmp_path: Path):
    names = list(load_file(folder / "model.safetensors"))
    blob = (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "part.safetensors").symlink_to(blob)  # as the hub's cache has them

    def told(file: str) -> str:
        index = {"weight_map": dict.fromkeys(names, file)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return refusal(folder)

    assert told("part.safetensors") == "nothing"
    for file in (
        "../outside.safetensors",
        str(blob),
        "..",
        "",
        "a/../../outside.safetensors",
        "..\\outside.safetensors",
    ):
        assert f"model.safetensors.index.json: found {file!r}, expected the name of a file in the folder" in told(file)


def test_files_that_mislead_are_one_line(folder: Path):
    whole = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])

    def told(change: Any) -> str:
        changed = json.loads(json.dumps(header))
        change(changed["model.norm.weight"])
        text = json.dumps(changed).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size :])
        return refusal(folder)

    assert told(lambda entry: None) == "nothing"
    for change in ({"shape": [10**12]}, {"data_offsets": [0, 10**15]}, {"dtype": "X9"}, {"shape": [-1]}):
        assert "model.safetensors cannot be read" in told(lambda entry, change=change: entry.update(change))
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + whole[8:])
    assert "model.safetensors cannot be read" in refusal(folder)
    (folder / "config.json").write_text("[" * 100_000)
    assert "nested more than 64 deep" in refusal(folder)


def test_a_file_of_fields_has_a_largest_size(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parsing, "MAX_JSON_BYTES", 100)
    assert "config.json: cannot be read as JSON (it has more than 100 bytes)" in refusal(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eos_token_id": 339}, "eos_token_id: found 339, which no token of tokenizer.json has"),
        ({"eos_token_id": 10**30}, f"eos_token_id: found {10**30}, which no token"),
        ({"eos_token_id": "2"}, "eos_token_id: found '2', expected an integer or a list of integers"),
        ({"eos_token_id": [2, None]}, "eos_token_id: found [2, None], expected an integer"),
    ],
)
def test_tokens_that_end_a_text_must_be_there(fields: dict[str, Any], message: str, folder: Path):
    edit(folder / "config.json", **fields)
    assert message in refusal(folder)


def test_dropout_in_a_tokenizer_is_said(folder: Path, tmp_path: Path, capsys: Any):
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["dropout"] = 0.3
    (folder / "tokenizer.json").write_text(json.dumps(state))
    assert main([str(folder), "--to=torch", f"--out={tmp_path / 'run'}"]) == 0
    assert "note: tokenizer.json sets model.dropout, which has no effect" in capsys.readouterr().out


def test_an_imported_model_asks_for_text_and_reads_no_more_than_it(
    folder: Path, tmp_path: Path, capsys: Any, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = convert(folder, "torch", tmp_path / "run")
    assert torchlm.evaluate.main([str(run)]) == 2
    assert "was imported and has no text of its own; name one with --data.files" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    (tmp_path / "text.txt").write_text("Once upon a time there was a fox.<|endoftext|>Once it was here.")
    shapes = []
    step = Engine.eval_step

    def watched(self: Any, tokens: np.ndarray, targets: np.ndarray) -> Any:
        shapes.append((tokens.shape, int((targets == 1).sum())))
        return step(self, tokens, targets)

    monkeypatch.setattr(Engine, "eval_step", watched)
    assert torchlm.evaluate.main([str(run), "--data.files", "text.txt"]) == 0
    [((rows, width), asked)] = shapes
    assert rows == 1
    assert width < 60
    assert asked == 0, "the token that begins a document is read, not predicted"


def test_its_figures_are_those_of_transformers_on_the_same_text(folder: Path, tmp_path: Path, capsys: Any):
    """The token that begins a document is read and not predicted, in both; long documents have the same tokens."""
    run = convert(folder, "torch", tmp_path / "run")
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a fox. " * 3000 + "<|endoftext|>héllo wörld")
    capsys.readouterr()
    assert torchlm.evaluate.main([str(run), "--data.files", str(text), "--baseline", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [
        line.split()[-2:] for line in lines if line.split()[0] in ("parameters", "tokens", "bytes", "nats", "bits")
    ]
    assert len(table) == 5
    assert all(ours == others for ours, others in table), table


def test_a_larger_tokenizer_than_the_model_has_rows_is_one_line(folder: Path, tmp_path: Path, capsys: Any):
    run = convert(folder, "torch", tmp_path / "run")
    state = json.loads((run / "tokenizer.json").read_text())
    state["added_tokens"].append({**state["added_tokens"][0], "id": 400, "content": "<far>"})
    state["model"]["vocab"]["<far>"] = 400
    (run / "tokenizer.json").write_text(json.dumps(state))
    assert torchlm.generate.main([str(run), "--no_verify"]) == 2
    assert "found 401 tokens, expected at most the model's 340" in capsys.readouterr().err


def read(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_nothing_is_lost_between_a_folder_and_its_export(framework: Any, folder: Path, tmp_path: Path):
    """Chat templates, added tokens, several eos ids, a padded vocabulary, and fields that say nothing of the model."""
    chat = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    added = {str(i): {"content": t, "special": True} for i, t in enumerate(("<unk>", "<s>", "</s>"))}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=added, chat_template=chat, model_max_length=512)
    edit(folder / "generation_config.json", eos_token_id=[2, 300], temperature=0.7, do_sample=True)
    edit(folder / "config.json", pretraining_tp=1, use_cache=True, task_specific_params={"a": 1})
    (folder / "chat_template.jinja").write_text(chat)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model"):
        (folder / name).write_bytes(name.encode())
    run = convert(folder, framework, tmp_path / "run")
    assert configs.load(run / "config.yaml").model.vocab_size == 340 > load_run(find_checkpoint(run))[1].vocab_size
    other = convert(run, "torch" if framework == "jax" else "jax", tmp_path / "other")
    back = convert(other, "hf", tmp_path / "back")
    before, after = read(folder), read(back)
    changed = {name for name in before if after[name] != before[name]}
    assert before.keys() == after.keys()
    assert changed <= {"config.json", "model.safetensors"}
    one, another = (json.loads(files["config.json"]) for files in (before, after))
    written = {"rope_theta", "rope_scaling", "rope_parameters", "torch_dtype", "dtype", "transformers_version"}
    assert {n: v for n, v in one.items() if n not in written} == {n: v for n, v in another.items() if n not in written}
    same = {n: a.tobytes() for n, a in load_file(folder / "model.safetensors").items()}
    assert {n: a.tobytes() for n, a in load_file(back / "model.safetensors").items()} == same
    conversation = [{"role": "user", "content": "hello"}]
    texts = [
        transformers.AutoTokenizer.from_pretrained(f).apply_chat_template(conversation, tokenize=False)
        for f in (folder, back)
    ]
    assert texts == ["user: hello\n"] * 2
    assert transformers.AutoModelForCausalLM.from_pretrained(back).generation_config.eos_token_id == [2, 300]
    (run / "huggingface" / "additional_chat_templates" / "tool_use.jinja").write_text("{{ other }}")
    with pytest.raises(UserError, match=r"tool_use.jinja: is damaged"):
        convert(run, "hf", tmp_path / "damaged")


def test_tokens_that_end_a_text_in_the_run_end_it_in_the_export(folder: Path, tmp_path: Path):
    run = convert(folder, "torch", tmp_path / "run")
    config = configs.load(run / "config.yaml")
    named = replace(config.tokenizer, stop_tokens=["<0x0A>"])
    configs.save(replace(config, tokenizer=named), run / "config.yaml")
    back = convert(run, "hf", tmp_path / "back")
    stops = json.loads((back / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [2, load_run(find_checkpoint(run))[1].inner.token_to_id("<0x0A>")]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "a"}}, "a"),
        ({"tokenizer_config.json": {"chat_template": "a"}, "chat_template.json": {"chat_template": "b"}}, "b"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "c"}]}}, None),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "d"}]}}, "d"),
        ({"tokenizer_config.json": {"chat_template": "a"}, "chat_template.jinja": "e"}, "e"),
    ],
)
def test_the_chat_template_is_found(files: dict[str, Any], found: str | None):
    stored = {n: (v if isinstance(v, str) else json.dumps(v)).encode() for n, v in files.items()}
    assert companions.Companions(stored).chat_template() == found


def test_a_file_of_no_json_is_one_line():
    with pytest.raises(UserError, match=r"tokenizer_config.json: cannot be read as JSON"):
        companions.Companions({"tokenizer_config.json": b"{"}).chat_template()
