"""The command line: what may be written, which value wins, and one line with the field's name for every mistake."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lmcore import config as configs
from lmcore.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RopeScaling,
    SampleConfig,
    TrainConfig,
    cli,
    flatten,
)
from lmcore.config.cli import command_parser, named_as_options, parse_arguments
from lmcore.errors import UserError

ROOT = Path(cli.__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in: paths below are relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*argv: str) -> Config:
    return cli.parse(argv, prog="prog", description="What it does.")


def yaml_file(content: str | bytes, name: str = "some.yaml") -> str:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def python(*argv: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *argv], env=environment, capture_output=True, text=True, timeout=120)


def test_no_argument_is_the_quickstart():
    assert parse() == Config(run_dir=str(Path("runs", "quickstart")))


def test_the_programs_own_arguments_are_read_where_none_are_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["prog", "--model.dim", "64"])
    assert cli.parse(None, prog="prog", description="").model.dim == 64


SCRIPTED = [
    ("--run_dir", "elsewhere", "run_dir", "elsewhere"),
    ("--train.steps", "60", "train.steps", 60),
    ("--train.batch_size", "8", "train.batch_size", 8),
    ("--train.grad_accum", "2", "train.grad_accum", 2),
    ("--train.precision", "bfloat16", "train.precision", "bfloat16"),
    ("--train.seed", "3", "train.seed", 3),
    ("--train.resume", "auto", "train.resume", "auto"),
    ("--optim.lr", "3e-4", "optim.lr", 3e-4),
    ("--data.files", "a.txt", "data.files", ["a.txt"]),
    ("--data.dataset", "2024", "data.dataset", "2024"),
    ("--tokenizer.kind", "chars", "tokenizer.kind", "chars"),
    ("--tokenizer.vocab_size", "300", "tokenizer.vocab_size", 300),
    ("--model.tie_embeddings", "false", "model.tie_embeddings", False),
    ("--optim.warmup_steps", "null", "optim.warmup_steps", 35),
    ("--sample.prompt", "", "sample.prompt", ""),
]


@pytest.mark.parametrize(("option", "text", "name", "value"), SCRIPTED)
@pytest.mark.parametrize("joined", [False, True])
def test_any_field_can_be_set(option: str, text: str, name: str, value: object, joined: bool):
    config = parse(f"{option}={text}") if joined else parse(option, text)
    assert dict(flatten(config))[name] == value


def test_the_command_line_wins_over_yaml_wherever_it_stands_and_yaml_over_defaults():
    path = yaml_file("model:\n  dim: 64\n  n_layers: 3\ntrain:\n  steps: 50\n")
    over = ("--model.dim", "96")
    for argv in (("--config", path, *over), (*over, "--config", path), (*over, f"--config={path}")):
        config = parse(*argv)
        assert (config.model.dim, config.model.n_layers, config.train.steps) == (96, 3, 50)
        assert config.model.n_heads == ModelConfig().n_heads


def test_a_later_file_wins_over_an_earlier_one():
    one, two = yaml_file("model:\n  dim: 64\n  n_layers: 3\n", "1.yaml"), yaml_file("model:\n  dim: 96\n", "2.yaml")
    config = parse("--config", one, "--config", two)
    assert (config.model.dim, config.model.n_layers, config.run_dir) == (96, 3, str(Path("runs", "2")))
    assert parse("--config", two, "--config", one).model.dim == 64


@pytest.mark.parametrize(
    ("argv", "files"),
    [
        (["--data.files", "a"], ["a"]),
        (["--data.files", "a", "b c", "-d"], ["a", "b c", "-d"]),
        (["--data.files", "a", "--model.dim", "64", "--data.files", "b"], ["a", "b"]),
        (["--data.files=a", "--data.files=b"], ["a", "b"]),
        (["--data.files=a", "b"], ["a", "b"]),
        (['--data.files=["a", "b"]'], ["a", "b"]),
        (["--data.files", '["a", "b"]'], ["a", "b"]),
        (["--data.files", "[]"], []),
        (["--data.files", "[odd].txt"], ["[odd].txt"]),
        (["--data.files", "1", "null"], ["1", "null"]),
        (["--data.files", 'a"b', "c\\d", "é"], ['a"b', "c\\d", "é"]),
        (["--data.files", "😀 𝔸", "\x7f\x85\n", "1e3: {}", " x" * 99], ["😀 𝔸", "\x7f\x85\n", "1e3: {}", " x" * 99]),
    ],
)
def test_a_list_takes_several_values_repeats_or_json(argv: list[str], files: list[str]):
    assert parse(*argv).data.files == files


TEXTS = [
    "[1]",
    "[]",
    '["a"]',
    "{a: 1}",
    "--help me",
    "-x",
    "- item",
    "---",
    "--1",
    "null",
    "~",
    "a: b",
    "'q'",
    "*a",
    "&a b",
    "!x",
]
TEXTS += [
    "yes",
    "1e3",
    "2024-01-01",
    "",
    " ",
    "#x",
    "a=b",
    "--a b=c",
    "@x",
    "%x",
    "|",
    "> ",
    "`x",
    "[" * 500,
    "a: &a [*a]",
    "\t",
    "\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_may_look_like_anything(text: str):
    parser = command_parser("prog", "What it does.", "")
    parser.add_argument("--prompt", type=list[str] | None)
    assert parse_arguments(parser, ["--prompt", text, "b"]).prompt == [text, "b"]
    assert parse_arguments(parser, ["--prompt", text]).prompt == [text]
    assert parse_arguments(parser, [f"--prompt={text}"]).prompt == [text]
    config = parse("--sample.prompt", text, f"--data.text_field={text}", "--run_dir", text or "r")
    assert (config.sample.prompt, config.data.text_field) == (text, text)
    assert config.run_dir == {"null": str(Path("runs", "quickstart")), "": "r"}.get(text, text), "null is for none"


def test_two_lists_and_another_field_do_not_mix():
    config = parse("--data.files", "a", "b", "--data.valid_files", "c", "--model.dim", "64", "--data.files", "d")
    assert (config.data.files, config.data.valid_files, config.model.dim) == (["a", "b", "d"], ["c"], 64)


def test_a_list_on_the_command_line_replaces_that_of_the_file():
    path = yaml_file("data:\n  files: [a, b]\n")
    assert parse("--config", path).data.files == ["a", "b"]
    assert parse("--config", path, "--data.files", "c").data.files == ["c"]


def test_an_optional_list_is_a_list_too():
    parser = command_parser("prog", "What it does.", "")
    parser.add_argument("--prompt", type=list[str] | None)
    assert parse_arguments(parser, []).prompt is None
    assert parse_arguments(parser, ["--prompt", "[INST] one", "two"]).prompt == ["[INST] one", "two"]
    assert parse_arguments(parser, ["--prompt", "null"]).prompt == ["null"], "a string like any other"


@pytest.mark.parametrize(
    "argv",
    [
        ["--model.rope_scaling.factor", "4"],
        ["--model.rope_scaling", '{"factor": 4}'],
        ["--config", "some.yaml"],
        ["--config", "some.yaml", "--model.rope_scaling.low_freq_factor", "1"],
    ],
)
def test_a_nested_group_is_set_whole_or_in_part(argv: list[str]):
    yaml_file("model:\n  rope_scaling:\n    factor: 4\n")
    assert parse(*argv).model.rope_scaling == RopeScaling(factor=4)
    assert parse(*argv, "--model.rope_scaling", "null").model.rope_scaling is None


MISTAKES = [
    ("--model.dmi 3", "--model.dmi: no such field; did you mean model.dim?"),
    ("--model.dmi=3", "--model.dmi: no such field; did you mean model.dim?"),
    ("--modle.dim 3", "--modle.dim: no such field; did you mean model.dim?"),
    ("--modeldim 3", "--modeldim: no such field; did you mean model.dim?"),
    ("-model.dim 3", "-model.dim: no such field; did you mean model.dim?"),
    ("--lr 1", "--lr: no such field; did you mean optim.lr?"),
    ("--stps 3", "--stps: no such field; did you mean train.steps?"),
    ("--batch_size 3", "--batch_size: no such field; did you mean train.batch_size or eval.batch_size?"),
    ("--train.lr 3", "--train.lr: no such field; did you mean optim.lr?"),
    ("--data.file a", "--data.file: no such field; did you mean data.files?"),
    ("--train.resum auto", "--train.resum: no such field; did you mean train.resume?"),
    ("--model.d 3", "--model.d: no such field; did you mean model.dim?"),
    ("--print_confg", "--print_confg: no such field; did you mean print_config?"),
    (
        "--model.rope_scaling.factr 4",
        "model.rope_scaling.factr: no such field; did you mean model.rope_scaling.factor?",
    ),
    ("--model.lora.help.rank 3", "model.lora.help.rank: no such field; did you mean model.lora.rank?"),
    ("--zzz 3", "--zzz: no such field; see --help for the fields there are"),
    ("--model.zzz 3", "--model.zzz: no such field; see --help for the fields there are"),
    ("extra", "extra: unexpected argument; set a field as --FIELD VALUE"),
    ("--model.dim 64 128", "128: unexpected argument; set a field as --FIELD VALUE"),
    ("--run_dir", "--run_dir: found no value, expected a string or null"),
    ("--model.dim", "model.dim: found no value, expected an integer"),
    ("--model.dim --optim.lr 1", "model.dim: found no value, expected an integer"),
    ("--data.files", "data.files: found no value, expected a list of strings"),
    ("--config", "--config: found no value, expected a value"),
    ("--model.dim three", "model.dim: found 'three', expected an integer"),
    ("--model.dim 3.5", "model.dim: found '3.5', expected an integer"),
    ("--optim.lr fast", "optim.lr: found 'fast', expected a number"),
    ("--optim.warmup_steps=", "optim.warmup_steps: found '', expected an integer or null"),
    ("--train.device=", "train.device: found '', expected one of auto, cpu, cuda, mps"),
    ("--train.steps=", "train.steps: found '', expected an integer"),
    ("--optim.lr inf", "optim.lr: found 'inf', expected a number"),
    ("--optim.warmup_steps x", "optim.warmup_steps: found 'x', expected an integer or null"),
    ("--model.tie_embeddings maybe", "model.tie_embeddings: found 'maybe', expected true or false"),
    ("--optim.schedule cos", "optim.schedule: found 'cos', expected one of cosine, linear, constant, wsd"),
    ("--model.rope_scaling.factor x", "model.rope_scaling.factor: found 'x', expected a number"),
    ("--model.rope_scaling x", "model.rope_scaling: found 'x', expected fields, each with its value or null"),
    ("--model 3", "model: found '3', expected one of its fields, as in --model.FIELD VALUE"),
    ("--sample.top_p 2", "sample.top_p: found 2.0, expected more than 0 and at most 1"),
    ("--train.steps 9 --optim.warmup_steps 9", "optim.warmup_steps: found 9, expected at least 0, less than"),
    ("--config none.yaml", "--config: found no file 'none.yaml', expected the path of a YAML file"),
    ("--config .", "--config: found the folder '.', expected a YAML file"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_on_the_command_line_is_one_line(line: str, message: str):
    assert refusal(*line.split()).startswith(message)


YAML_MISTAKES = [
    ("model:\n  dmi: 3\n", "model.dmi: no such field; did you mean model.dim?"),
    ("modle:\n  dim: 3\n", "modle.dim: no such field; did you mean model.dim?"),
    ("batch_size: 3\n", "batch_size: no such field; did you mean train.batch_size or eval.batch_size?"),
    ("model:\n  dim: three\n", "model.dim: found 'three', expected an integer"),
    ("model:\n  dim: 64.0\n", "model.dim: found 64.0, expected an integer"),
    ("model:\n  dim: null\n", "model.dim: found None, expected an integer"),
    ("optim:\n  lr: fast\n", "optim.lr: found 'fast', expected a number"),
    ("optim:\n  lr: .inf\n", "optim.lr: found inf, expected a number"),
    ("optim:\n  warmup_steps: x\n", "optim.warmup_steps: found 'x', expected an integer or null"),
    ("run_dir: 2024\n", "run_dir: found 2024, expected a string or null"),
    ("data:\n  files: a.txt\n", "data.files: found 'a.txt', expected a list of strings"),
    ("data:\n  files: [1, 2]\n", "data.files: found [1, 2], expected a list of strings"),
    (
        "model:\n  rope_scaling:\n    factr: 4\n",
        "model.rope_scaling.factr: no such field; did you mean model.rope_scaling.factor?",
    ),
    ("model:\n  rope_scaling:\n    factor: x\n", "model.rope_scaling.factor: found 'x', expected a number"),
    ("model:\n  tie_embeddings: 'false'\n", "model.tie_embeddings: found 'false', expected true or false (some.yaml)"),
    ("train:\n  steps: '100'\n", "train.steps: found '100', expected an integer (some.yaml)"),
    ("optim:\n  lr: '1e-3'\n", "optim.lr: found '1e-3', expected a number (some.yaml)"),
    ("optim:\n  warmup_steps: 'null'\n", "optim.warmup_steps: found 'null', expected an integer or null"),
    ("train:\n  steps: 1:30\n", "train.steps: found '1:30', expected an integer (some.yaml)"),
    (
        "train:\n  steps: 99999999999999999999\n",
        "train.steps: found 99999999999999999999, expected an integer of 64",
    ),
    (
        "optim:\n  lr: 1" + "0" * 400 + "\n",
        "--config: some.yaml: cannot be read as YAML (found a number of 401",
    ),
    ('data:\n  text_field: "\\uD800"\n', "--config: some.yaml: cannot be read as YAML"),
    (
        "train:\n  steps: 1\ntrain:\n  steps: 2\n",
        "--config: some.yaml: cannot be read as YAML (duplicate key 'train'",
    ),
    ("train:\n  grad_accum: 3\n", "train.grad_accum: found 3, expected a divisor of batch_size = 8"),
    ("model: 3\n", "--config: some.yaml: model holds 3, expected fields, each with its value"),
    ("model:\n- dim\n", "--config: some.yaml: model holds ['dim'], expected fields, each with its value"),
    ("model:\n", "--config: some.yaml: model holds None, expected fields, each with its value"),
    ("", "--config: some.yaml holds None, expected fields, each with its value"),
    ("- model\n", "--config: some.yaml holds ['model'], expected fields, each with its value"),
    ("model\n", "--config: some.yaml holds 'model', expected fields, each with its value"),
    ("3\n", "--config: some.yaml holds 3, expected fields, each with its value"),
    ("model: [\n", "--config: some.yaml: cannot be read as YAML (while parsing"),
    ("model:\n\tdim: 3\n", "--config: some.yaml: cannot be read as YAML (while scanning"),
    (
        b"data:\n  dataset: caf\xe9\n",
        "--config: some.yaml: cannot be read as YAML ('utf-8' codec can't decode byte 0xe9",
    ),
]


@pytest.mark.parametrize(("content", "message"), YAML_MISTAKES, ids=[repr(content) for content, _ in YAML_MISTAKES])
def test_a_mistake_in_a_file_is_one_line(content: str | bytes, message: str):
    assert refusal("--config", yaml_file(content)).startswith(message)


def meaning(field: str, *argv: str) -> object:
    """The value of a field, or None where it is refused."""
    try:
        return dict(flatten(parse(*argv)))[field]
    except UserError:
        return None


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        *(("train.steps", text, 100) for text in ("100", "0100", "+100", "1_00", "0x64")),
        *(("train.steps", text, None) for text in ("1:40", "1e2", "0o144", "1__00", "0b11", "yes", "null", "100.0")),
        *(("optim.lr", text, 0.001) for text in ("1e-3", "1.0e-3", ".001", "0.001", "1E-03", "+1e-3")),
        *(("optim.lr", text, None) for text in ("1e", ".inf", ".nan", "1:30.5", "on", "2024-01-01")),
        *(("optim.warmup_steps", text, 35) for text in ("35", "null", "~", "NULL", "0x23")),
        *(("optim.warmup_steps", text, None) for text in ("1:30", "none", "1e1")),
        *(("log.wandb", text, True) for text in ("true", "True", "yes", "on", "ON")),
        *(("log.wandb", text, False) for text in ("false", "FALSE", "no", "off")),
        *(("log.wandb", text, None) for text in ("y", "1", "0", "1.0")),
    ],
)
def test_a_word_means_the_same_in_a_file_and_on_the_command_line(field: str, text: str, value: object):
    group, name = field.split(".")
    in_file = meaning(field, "--config", yaml_file(f"{group}:\n  {name}: {text}\n"))
    on_line = meaning(field, f"--{field}={text}")
    assert (in_file, on_line) == (value, value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &a [*a]", "line 1: &a contains itself"),
        ("a: " + "[" * 3000 + "]" * 3000, "maximum nesting depth"),  # PyYAML's own
        ("- " * 3000, "lists or mappings are nested more than 64 deep"),
        (
            "\n".join([f"a0: &a0 [{'x,' * 9}x]", *(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}x]" for i in range(1, 11))]),
            "values, those",
        ),
        (
            "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i}\n  <<: [{f'*a{i - 1},' * 9}*a0]" for i in range(1, 11))]),
            "values, those",
        ),
        ("a: " + "x" * (5 << 20), "more than 4,194,304 bytes"),
        ("[" + "1," * 300_000 + "]", "more than 100,000 values"),
        ("a: !!python/object:os.system x", "found the tag"),
        ("a: 1\n---\na: 2\n", "line 2 begins a second document"),
        ("? [a]\n: 1", "found a list, mapping or alias as a key"),
        ("a: *b", "found *b, expected &b before it"),
    ],
)
def test_a_file_that_is_made_to_choke_on_is_one_line_and_quick(content: str, message: str):
    begin = time.process_time()  # a busy machine takes longer by the clock
    assert message in refusal("--config", yaml_file(content))
    assert time.process_time() - begin < 20


def test_numbers_in_a_file_may_be_written_as_people_write_them():
    config = parse("--config", yaml_file("\ufeffoptim:\n  lr: 3e-4\n  clip: 1\nlog:\n  wandb: yes\n"))
    assert (config.optim.lr, config.optim.clip, config.log.wandb) == (3e-4, 1.0, True)


def test_help_names_every_field_and_what_it_is_for(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    missing = [name for name, _ in flatten(Config()) if f"--{name} " not in shown]
    assert missing == []
    assert "Vocabulary size V; 0 takes the tokenizer's size." in " ".join(shown.split())
    with pytest.raises(SystemExit):
        parse("--model.rope_scaling.help")
    nested = capsys.readouterr().out
    assert [name for name, _ in flatten(RopeScaling()) if f"--model.rope_scaling.{name} " not in nested] == []


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--model.dim", "96", "--data.files", "a", "b", "--model.rope_scaling.factor", "2"],
        ["--sample.prompt", "it's: #1\n", "--data.separator", "", "--optim.lr", "1e-05"],
    ],
)
def test_a_printed_config_reads_back_as_itself(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        parse(*argv, "--print_config")
    assert caught.value.code == 0
    path = yaml_file(capsys.readouterr().out)
    assert parse("--config", path, "--run_dir", "r") == parse(*argv, "--run_dir", "r")


@pytest.mark.parametrize(
    "wrong", [["--optim.lr=-1"], ["--model.dim=-8"], ["--train.steps", "9", "--optim.warmup_steps=9"]]
)
def test_an_impossible_config_is_not_printed(wrong: list[str], capsys: pytest.CaptureFixture[str]):
    assert "expected at least" in refusal(*wrong, "--print_config")
    assert capsys.readouterr().out == ""


def test_a_printed_config_keeps_what_was_derived_open(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse("--train.steps", "200", "--print_config")
    again = parse("--config", yaml_file(capsys.readouterr().out), "--train.steps", "400", "--model.dim", "64")
    assert again == parse("--train.steps", "400", "--model.dim", "64", "--run_dir", str(again.run_dir))


def test_a_saved_config_reads_back_as_itself():
    config = Config(
        run_dir="r",
        model=ModelConfig(dim=96, rope_scaling=RopeScaling(factor=2)),
        data=DataConfig(files=["a", "b"], separator="—\n"),
        optim=OptimConfig(lr=1e-5, eps=1e-12),
    )
    configs.save(config, Path("some.yaml"))
    assert parse("--config", "some.yaml") == config


@pytest.mark.parametrize("module", ["jaxlm.train", "jaxlm.generate", "jaxlm.evaluate", "jaxlm.ablate"])
def test_help_loads_no_framework(module: str):
    heavy = {"jax", "flax", "optax", "orbax", "torch", "matplotlib", "datasets", "transformers"}
    code = (
        "import runpy, sys\n"
        "sys.argv = ['prog', '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__')\n"
        "finally:\n"
        f"    print(sorted({heavy!r} & set(sys.modules)), len(sys.modules) > 50, file=sys.stderr)"
    )
    shown = python("-W", "ignore", "-c", code)
    assert (shown.returncode, shown.stderr) == (0, "[] True\n")
    assert "--help" in shown.stdout


def test_a_mistake_ends_the_program_with_one_line_and_code_2(folder: Path):
    ended = python("-m", "jaxlm.train", "--model.dmi", "3")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: --model.dmi: no such field; did you mean model.dim?\n"
    assert list(folder.iterdir()) == [], "and nothing is made"


def test_bytes_that_are_no_text_are_one_line():
    with pytest.raises(UserError, match=r"'bad .udcff': found bytes that are not UTF-8"):
        parse("--data.files", "bad \udcff")


def test_a_field_that_a_command_has_as_an_option_is_named_as_one():
    with pytest.raises(UserError, match=r"^--seed: found -1"), named_as_options("sample", "train"):
        SampleConfig(seed=-1)
    with pytest.raises(UserError, match=r"^eval\.windows"), named_as_options("sample"):
        EvalConfig(windows=-1)


def test_help_is_shown_in_ascii():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    ended = subprocess.run([sys.executable, "-m", "jaxlm.train", "--help"], env=environment, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_new_run_takes_the_first_free_folder_named_after_the_file():
    path = yaml_file("model:\n  dim: 64\n", "little.yaml")
    found = []
    for _ in range(3):
        found.append(parse("--config", path).run_dir)
        Path(found[-1]).mkdir(parents=True)
    assert found == [str(Path("runs", name)) for name in ("little", "little-2", "little-3")]
    assert parse().run_dir == str(Path("runs", "quickstart"))
    assert parse("--config", path, "--run_dir", "mine").run_dir == "mine"


def test_resuming_takes_the_last_run_of_that_name():
    argv = ("--train.resume", "auto")
    assert parse(*argv).run_dir == str(Path("runs", "quickstart"))
    for name in ("quickstart", "quickstart-2", "other-3"):
        Path("runs", name).mkdir(parents=True)
    assert parse(*argv).run_dir == str(Path("runs", "quickstart-2"))
    assert parse("--train.resume", "never").run_dir == str(Path("runs", "quickstart-3"))


SAVED = Config(
    run_dir="first",
    model=ModelConfig(dim=96, rope_scaling=RopeScaling(factor=2)),
    data=DataConfig(files=["a"], valid_files=["b"]),
    train=TrainConfig(steps=50, batch_size=4),
)


@pytest.fixture
def saved_run() -> str:
    """A run folder, since renamed, with the config of its run."""
    Path("second").mkdir()
    configs.save(SAVED, Path("second", "config.yaml"))
    return "second"


def test_resuming_a_named_folder_goes_on_from_its_own_config(saved_run: str):
    resumed = parse("--run_dir", saved_run, "--train.resume", "auto")
    assert resumed == replace(SAVED, run_dir="second", train=replace(SAVED.train, resume="auto"))


def test_the_command_line_still_overrides_a_resumed_config(saved_run: str):
    resumed = parse("--run_dir", saved_run, "--train.resume", "auto", "--train.steps", "70", "--data.files", "c")
    assert (resumed.train.steps, resumed.data.files, resumed.model) == (70, ["c"], SAVED.model)


@pytest.mark.parametrize(("steps", "warmup"), [(20, 1), (2000, 100)])
def test_what_was_derived_follows_the_fields_that_change_on_resume(saved_run: str, steps: int, warmup: int):
    resumed = parse(
        "--run_dir", saved_run, "--train.resume", "auto", "--train.steps", str(steps), "--train.batch_size=6"
    )
    assert (resumed.optim.warmup_steps, resumed.eval.batch_size) == (warmup, 6)
    optim = OptimConfig(warmup_steps=7)
    configs.save(replace(SAVED, optim=optim, eval=EvalConfig(batch_size=3)), Path(saved_run, "config.yaml"))
    resumed = parse(
        "--run_dir", saved_run, "--train.resume", "auto", "--train.steps", str(steps), "--train.batch_size=6"
    )
    assert (resumed.optim.warmup_steps, resumed.eval.batch_size) == (7, 3), "what was given stays"


def test_without_resume_or_with_a_file_the_saved_config_is_not_read(saved_run: str):
    assert parse("--run_dir", saved_run).model == ModelConfig()
    path = yaml_file("model:\n  dim: 64\n")
    with_file = parse("--run_dir", saved_run, "--train.resume", "auto", "--config", path)
    assert with_file.model == ModelConfig(dim=64)
