"""What is written is read back to the bit; what is damaged, foreign or dangerous is refused in one line."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmcore.errors import UserError
from torchlm import checkpoint
from torchlm.checkpoint import open_item, restore_state, save_state

PARAMS = {"layers.0.weight": torch.randn(3, 5), "norm.weight": torch.randn(5)}
OPTIMIZER = {"step": torch.tensor(7), "exp_avg.norm.weight": torch.randn(5).double()}
FILE = "model-00001-of-00001.safetensors"


def empty(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(t) for name, t in tensors.items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_state(tmp_path / "state", PARAMS, OPTIMIZER)()
    return tmp_path / "state"


def test_what_was_saved_is_read_back_to_the_bit(saved: Path):
    params, optimizer = empty(PARAMS), empty(OPTIMIZER)
    restore_state(saved, params=params, optimizer=optimizer)
    for found, expected in ((params, PARAMS), (optimizer, OPTIMIZER)):
        assert all(torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in expected.items())
    assert not torch.equal(empty(PARAMS)["norm.weight"], params["norm.weight"])


def test_later_changes_do_not_reach_the_file(tmp_path: Path):
    changing = {"w": torch.ones(3)}
    finish = save_state(tmp_path / "state", changing, {})
    changing["w"].zero_()
    finish()
    read = {"w": torch.zeros(3)}
    restore_state(tmp_path / "state", params=read)
    assert torch.equal(read["w"], torch.ones(3))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"norm.weight": PARAMS["norm.weight"]}, r"found layers.0.weight as torch.float32 \[3, 5\], expected None"),
        (PARAMS | {"more": torch.zeros(2)}, r"found more as None, expected torch.float32 \[2\]"),
        (PARAMS | {"norm.weight": torch.zeros(6)}, r"torch.float32 \[5\], expected torch.float32 \[6\]"),
        (PARAMS | {"norm.weight": torch.zeros(5).half()}, r"torch.float32 \[5\], expected torch.float16 \[5\]"),
    ],
)
def test_another_models_weights_are_refused(saved: Path, wanted: dict[str, torch.Tensor], message: str):
    with pytest.raises(UserError, match=message):
        restore_state(saved, params=empty(wanted), optimizer=empty(OPTIMIZER))


def test_weights_that_nothing_goes_on_from_may_be_of_another_type_but_not_shape(saved: Path):
    wider = {name: t.double() for name, t in empty(PARAMS).items()}
    restore_state(saved, params=wider)
    assert all(torch.equal(wider[name], t.double()) for name, t in PARAMS.items())
    with pytest.raises(UserError, match=r"found norm.weight as \[5\], expected \[6\]"):
        restore_state(saved, params=wider | {"norm.weight": torch.zeros(6).double()})


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_cut_file_is_refused(saved: Path, size: int):
    path = saved / "params" / FILE
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="params: cannot be read"):
        restore_state(saved, params=empty(PARAMS))


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="params: cannot be read"):
        restore_state(tmp_path / "state", params=empty(PARAMS))


def test_a_failure_to_write_is_an_os_error(tmp_path: Path):
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(OSError, match="state"):
        save_state(tmp_path / "state", PARAMS, OPTIMIZER)()


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_no_file_of_a_checkpoint_is_unpickled(saved: Path, tmp_path: Path):
    sign, payload = tmp_path / "executed", pickle.dumps(Bomb(tmp_path / "executed"))
    assert not list(saved.rglob("*.metadata"))
    for name in (".metadata", "model.safetensors.index.json", "extra.distcp"):  # nothing here is needed to read
        (saved / "params" / name).write_bytes(payload)
    restore_state(saved, params=empty(PARAMS))
    (saved / "params" / FILE).write_bytes(payload)
    with pytest.raises(UserError, match="cannot be read"):
        restore_state(saved, params=empty(PARAMS))
    assert not sign.exists()
    pickle.loads(payload)
    assert sign.exists(), "the payload would have shown itself"


@pytest.mark.parametrize("name", ["plain", "run[1]", "**", "a*b", "back\\slash", "x::y #%20"])
def test_a_folder_of_any_name_can_be_read(tmp_path: Path, name: str):
    save_state(tmp_path / name / "state", PARAMS, OPTIMIZER)()
    read = empty(PARAMS)
    restore_state(tmp_path / name / "state", params=read)
    assert all(torch.equal(read[name], t) for name, t in PARAMS.items())


def test_what_cannot_be_opened_is_not_called_a_save(tmp_path: Path, monkeypatch):
    def in_vain(item: dict[str, torch.Tensor], **_: object) -> None:
        """Write nothing and say nothing."""

    monkeypatch.setattr(checkpoint.dcp, "save", in_vain)
    with pytest.raises(OSError, match="was written and cannot be opened"):
        save_state(tmp_path / "state", PARAMS, OPTIMIZER)()


@pytest.mark.parametrize("block", [1, 30, 1 << 26])
def test_tensors_are_read_one_at_a_time_from_any_number_of_files(block: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "BLOCK_BYTES", block)
    save_state(tmp_path, PARAMS, OPTIMIZER)()
    opened = open_item(tmp_path, "params")
    assert {name: each.shape for name, each in opened.items()} == {n: tuple(t.shape) for n, t in PARAMS.items()}
    assert all(torch.equal(opened[name].read(), tensor) for name, tensor in PARAMS.items())
    assert int(open_item(tmp_path, "optimizer")["step"].read()) == 7
    # As two processes write them: each its rows, with their offsets.
    (tmp_path / "params" / FILE).unlink()
    whole = PARAMS["layers.0.weight"]
    for number, (begin, rows) in enumerate(((0, whole[:2]), (2, whole[2:]))):
        saved = json.dumps({"layers.0.weight": {"saved_offsets": [begin, 0]}})
        file = tmp_path / "params" / f"shard-{number}.safetensors"
        save_file({"layers.0.weight": rows.contiguous()}, file, {"DCP_SHARDING_INFO": saved})
    assert torch.equal(open_item(tmp_path, "params")["layers.0.weight"].read(), whole)
    (tmp_path / "params" / "shard-0.safetensors").unlink()
    with pytest.raises(UserError, match=r"found 5 values of layers.0.weight, expected 15; a file is missing"):
        open_item(tmp_path, "params")["layers.0.weight"].read()


def test_a_file_that_is_cut_off_after_it_was_opened_is_named(saved: Path):
    opened = open_item(saved, "params")
    file = saved / "params" / FILE
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"cannot be read .*; take another checkpoint"):
        opened["norm.weight"].read()
    with pytest.raises(UserError, match=r"cannot be read .*; take another checkpoint"):
        open_item(saved, "params")
    with pytest.raises(UserError, match=r"cannot be read .*; take another checkpoint"):
        open_item(saved, "nothing")


def test_a_missing_part_is_refused(saved: Path):
    """DCP itself would leave what no file has as it was."""
    path = saved / "params" / FILE
    tensors = load_file(path)
    whole = tensors["layers.0.weight"]
    for begin, end in ((0, 2), (2, 3)):
        own = {name: t for name, t in tensors.items() if begin == 0} | {"layers.0.weight": whole[begin:end].clone()}
        starts = {name: [begin if name == "layers.0.weight" else 0, *[0] * (t.ndim - 1)] for name, t in own.items()}
        offsets = {name: {"saved_offsets": start} for name, start in starts.items()}
        save_file(own, path.with_name(f"shard-{begin}.safetensors"), {"DCP_SHARDING_INFO": json.dumps(offsets)})
    path.unlink()
    read = empty(PARAMS)
    restore_state(saved, params=read)
    assert all(torch.equal(read[name], t) for name, t in PARAMS.items())
    path.with_name("shard-0.safetensors").unlink()
    with pytest.raises(UserError, match=r"found a part of layers.0.weight, expected all of it"):
        restore_state(saved, params=read)
