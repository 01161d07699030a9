"""Proves that an ablation's file is checked entry by entry before anything runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from lmcore import config as configs
from lmcore.ablation.plan import Outcome, Trial, check_trials, merge, outcome, read_plan, trials
from lmcore.ablation.report import write_report
from lmcore.config import Config
from lmcore.errors import UserError
from tests.lmcore.ablation.studies import FILE, a_run, rows, written


def test_every_entry_is_the_base_but_for_what_it_changes(tmp_path: Path):
    found = trials(read_plan(written(tmp_path)), tmp_path / "out")
    assert [(t.entry, t.seed, t.folder.name) for t in found[:4]] == [
        ("base", 0, "base-seed-0"),
        ("untied head", 0, "untied-head-seed-0"),
        ("Wider & deeper", 0, "wider-deeper-seed-0"),
        ("base", 5, "base-seed-5"),
    ]
    assert len(found) == 6
    base = found[0].config
    assert (base.model.dim, base.optim.lr, base.train.resume) == (24, 1e-3, "auto")
    changed = configs.differences(base, found[1].config)
    assert changed.keys() == {"run_dir", "model.tie_embeddings"}
    wider = found[2].config.model
    assert (wider.dim, wider.head_dim, wider.ffn_dim) == (48, 16, 128)  # what is derived follows the change
    assert configs.differences(found[1].config, found[4].config).keys() == {"run_dir", "train.seed"}


def test_a_change_may_be_dotted_or_in_groups_and_leaves_the_base_alone():
    base = {"model": {"dim": 24, "n_heads": 3}}
    merged = merge(base, {"model.dim": 48, "model.rope_scaling.factor": 2.0, "optim": {"clip": 0}})
    assert merged == {"model": {"dim": 48, "n_heads": 3, "rope_scaling": {"factor": 2.0}}, "optim": {"clip": 0}}
    assert merge(merged, {"model.rope_scaling": None})["model"]["rope_scaling"] is None
    assert base == {"model": {"dim": 24, "n_heads": 3}}


def test_the_base_may_be_another_file_beside_it(tmp_path: Path):
    (tmp_path / "small.yaml").write_text("model.dim: 24\nmodel: {n_heads: 3}\n")
    plan = read_plan(written(tmp_path, "base: small.yaml\nchanges:\n  a: {optim.clip: 0}\n"))
    assert (plan.base, plan.seeds) == ({"model": {"dim": 24, "n_heads": 3}}, [0, 1])


CHANGES = "base: {}\nchanges:\n  "
MISTAKES = {
    "no base": ("changes: {a: {optim.clip: 0}}", "base: found None, expected the fields of a config"),
    "a base that is not there": ("base: no.yaml\nchanges: {a: {optim.clip: 0}}", "no.yaml: no such file"),
    "an unknown field of the base": (
        "base: {model: {dmi: 3}}\nchanges: {a: {optim.clip: 0}}",
        "base: model.dmi: no such",
    ),
    "no changes": ("base: {}", "changes: found None"),
    "another field": ("base: {}\nchange: {}", "change: no such field, expected base, seeds and changes"),
    "an unknown field": (CHANGES + "first: {model.dmi: 3}", "first: model.dmi: no such field; did you mean model.dim?"),
    "an unknown group": (CHANGES + "first: {modle.dim: 3}", "first: modle: no such field"),
    "a wrong type": (CHANGES + "first: {optim.clip: much}", "first: optim.clip: found 'much', expected a number"),
    "an impossible change": (CHANGES + "first: {model.n_heads: 3}", "first: model.dim: found 128, expected a multiple"),
    "no fields": (CHANGES + "first:", "first: found None, expected fields"),
    "the same name twice": (
        CHANGES + "a: {optim.clip: 0}\n  a: {optim.lr: 1}",
        "duplicate key 'a', lines 3 and 4",
    ),
    "the same field twice": (
        CHANGES + "a: {optim.clip: 0, optim.clip: 1}",
        "duplicate key 'optim.clip', line 3",
    ),
    "the same field in two forms": (CHANGES + "a: {optim.clip: 0, optim: {clip: 1}}", "a: optim.clip is set twice, by"),
    "two forms in the base": (
        "base: {model.dim: 8, model: {dim: 4}}\nchanges: {a: {optim.clip: 0}}",
        "base: model.dim",
    ),
    "a base that holds itself": ("base: &a {model: *a}\nchanges: {a: {optim.clip: 0}}", "&a contains itself"),
    "a quoted number": (CHANGES + "a: {optim.clip: '0'}", "a: optim.clip: found '0', expected a number"),
    "the same folder twice": (
        CHANGES + "a b: {optim.clip: 0}\n  a-b: {optim.lr: 1}",
        "a-b: found the same folder name as 'a b'",
    ),
    "a second base": (CHANGES + "Base: {optim.clip: 0}", "Base: found the same folder name as 'base'"),
    "a seed in a change": (CHANGES + "a: {train: {seed: 1}}", "a: train.seed cannot be changed: seeds names"),
    "seeds twice": ("base: {}\nseeds: [1, 1]\nchanges: {a: {optim.clip: 0}}", "seeds: found [1, 1]"),
    "no YAML": ("base: {", "cannot be read as YAML"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_file_and_entry(name: str, tmp_path: Path):
    text, message = MISTAKES[name]
    with pytest.raises(UserError) as error:
        trials(read_plan(written(tmp_path, text)), tmp_path / "out")
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_the_state_of_a_run_is_read_from_its_folder(study: tuple[Path, list[Outcome]]):
    _, outcomes = study
    states = [(o.trial.entry, o.trial.seed, o.state) for o in outcomes if o.state != "finished"]
    assert states == [("untied head", 5, "diverged"), ("Wider & deeper", 5, "unfinished")]


@pytest.mark.parametrize("damage", ["", "[]", '{"framework": "jax"}'])
def test_a_damaged_run_is_one_line_that_names_the_way_out(study: tuple[Path, list[Outcome]], damage: str):
    trial = study[1][0].trial
    (trial.folder / "run.json").write_text(damage)
    with pytest.raises(UserError, match=r"run.json: cannot be read .*; delete .* to train it again"):
        outcome(trial)


def test_a_finished_run_without_its_metrics_is_one_line(study: tuple[Path, list[Outcome]]):
    trial = study[1][0].trial
    (trial.folder / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics.jsonl: found no evaluation; delete .* to train it again"):
        outcome(trial)


def test_a_change_may_build_on_another_by_a_merge_key(tmp_path: Path):
    text = (
        "base: {model: {dim: 24, n_heads: 2}}\nchanges:\n  a: &a {optim.lr: 1e-3}\n  $x^$ b: {<<: *a, optim.clip: 0}\n"
    )
    plan = read_plan(written(tmp_path, text))
    found = {trial.entry: trial.config.optim for trial in trials(plan, tmp_path / "out")}
    assert (found["$x^$ b"].lr, found["$x^$ b"].clip, found["a"].clip) == (1e-3, 0, 1)
    assert "$x^$ b" in write_report(tmp_path, plan, [outcome(t) for t in trials(plan, tmp_path / "out")], [], "command")


def test_a_folder_with_other_settings_or_another_text_is_refused(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("a tale of a cat " * 50)
    more = f"  data: {{files: [{text}], dir: {tmp_path / 'data'}}}\n  tokenizer: {{kind: bytes}}\nseeds:"
    path = written(tmp_path, FILE.replace("seeds:", more))
    found = trials(read_plan(path), tmp_path / "out")
    check_trials(found)
    a_run(found[1], rows(1.0), 10, 10)
    [meta] = (tmp_path / "data").glob("*/meta.json")
    (found[1].folder / "meta.json").write_bytes(meta.read_bytes())
    filled = {"model": replace(found[1].config.model, vocab_size=257)}
    configs.save(replace(found[1].config, **filled), found[1].folder / "config.yaml")
    check_trials(found)
    text.write_text("a tale of a dog " * 50)
    with pytest.raises(
        UserError, match=r"untied head, seed 0: .*the text has changed; delete it or give another --out"
    ):
        check_trials(found)
    text.write_text("a tale of a cat " * 50)
    other: Config = replace(found[1].config, optim=replace(found[1].config.optim, lr=1.0))
    found[1] = Trial(entry="untied head", seed=0, config=other)
    with pytest.raises(UserError, match=r"untied head, seed 0: .*optim.lr was 0.001 and is 1.0"):
        check_trials(found)
