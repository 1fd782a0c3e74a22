"""A damaged run.json is one line, whoever reads it."""

import json
from pathlib import Path

import pytest

from regpt import UserError
from regpt.training.run_dir import RunDirectory

RECORD = {
    "config": {"preset": "quickstart", "data": ["pydocs"], "steps": 4, "model": {"n_layer": 1}},
    "data": {"sources": "pydocs", "fingerprint": "0f", "train_tokens": 90, "validation_tokens": 9},
    "runtime": "cpu (2 threads), bf16",
    "versions": {"torch": "2.13.0"},
}


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("config", "data", True),
        ("config", "steps", "many"),
        ("config", "model", []),
        ("data", "validation_tokens", [9]),
        ("data", "fingerprint", None),
        (None, "versions", "2.13.0"),
        (None, "runtime", {}),
    ],
)
def test_a_field_of_another_type_is_named(
    tmp_path: Path, part: str | None, name: str, value: object
) -> None:
    record = json.loads(json.dumps(RECORD))
    run = RunDirectory(tmp_path)
    run.run_json.write_text(json.dumps(record))
    assert run.read_record() == record
    (record if part is None else record[part])[name] = value
    run.run_json.write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"run\.json is damaged \({name} is .*restore it"):
        run.read_record()
