"""No damage is accepted in silence, and what is accepted is seen."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.torture import damage
from tests.torture.damage import Specimen


@pytest.mark.parametrize("count", [10, pytest.param(500, marks=pytest.mark.slow)])
def test_no_damage_is_accepted_in_silence(tmp_path: Path, count: int):
    outcomes = list(damage.faults(count, tmp_path))
    assert [outcome for outcome in outcomes if outcome.verdict == "lost"] == []
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    assert verdicts["refused"] > count / 4
    assert verdicts["survived"] > 0
    assert {outcome.fault.partition(",")[0] for outcome in outcomes} == {"torchlm run", "jaxlm run", "export"}


@pytest.fixture(scope="module")
def unverified(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Specimen]:
    """Specimens whose commands don't compare checksums."""
    folder = tmp_path_factory.mktemp("unverified")
    return {specimen.name: specimen for specimen in damage.specimens(folder, ["--no_verify"])}


@pytest.mark.parametrize(
    ("name", "file", "old", "new"),
    [
        ("torchlm run", "valid.bin", rb"^..", b"7\0"),
        ("jaxlm run", "valid.bin", rb"^..", b"7\0"),
        ("export", "config.json", rb'"rope_theta": \d', b'"rope_theta": 7'),
        ("jaxlm run, imported", "tokenizer_config.json", rb'"left"', b'"lift"'),
        ("torchlm run, imported", "params/model-00001-of-00001.safetensors", rb".$", b"@"),
    ],
)
def test_what_is_accepted_is_lost(
    unverified: dict[str, Specimen], tmp_path: Path, name: str, file: str, old: bytes, new: bytes
):
    specimen = unverified[name]
    path = next(path for path in specimen.files if str(path).endswith(file))
    content = re.sub(old, new, (specimen.folder / path).read_bytes(), count=1, flags=re.DOTALL)
    verdict, detail = specimen.inject(path, content, tmp_path / "copy")
    assert verdict == "lost"
    assert re.match(r"\w+: (accepted, with|lost, with)", detail), detail


def test_the_order_of_a_headers_metadata_is_no_content_and_every_value_is(tmp_path: Path):
    path = tmp_path / "a.safetensors"

    def written(metadata: dict[str, str], values: list[float], name: str = "w") -> bytes:
        data = np.array(values, np.float32).tobytes()
        about = {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(data)]}
        header = json.dumps({"__metadata__": metadata, name: about}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)
        return damage.content(path)

    one = written({"a": "1", "b": "2"}, [1.0, 2.0])
    assert written({"b": "2", "a": "1"}, [1.0, 2.0]) == one
    others = [({"a": "1", "b": "3"}, [1.0, 2.0], "w"), ({"a": "1", "b": "2"}, [1.0, 3.0], "w")]
    for metadata, values, name in [*others, ({"a": "1", "b": "2"}, [1.0, 2.0], "v")]:
        assert written(metadata, values, name) != one
