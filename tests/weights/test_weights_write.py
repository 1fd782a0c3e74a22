"""A model out: the files, their bytes, whole or not at all."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import TINY, WIDE, Config, as_stored, assert_same_bits, configs, random_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from regpt import UserError
from regpt.weights import (
    read_config,
    read_tensors,
    tensor_shapes,
    write_model,
    write_model_files,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ALWAYS = ["config.json", "generation_config.json", "model.safetensors"]
TOKENIZER = ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]


@settings(deadline=None, max_examples=40)
@given(
    config=configs(),
    dtype=st.sampled_from(DTYPES),
    padding=st.integers(0, 3),
)
def test_what_we_write_we_read_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    config: Config,
    dtype: torch.dtype,
    padding: int,
) -> None:
    tensors = random_tensors(config, dtype=dtype)
    rows = torch.ones(padding, int(config["n_embd"]), dtype=dtype)
    padded = tensors | {"wte.weight": torch.cat([tensors["wte.weight"], rows])}
    directory = tmp_path_factory.mktemp("models") / "model"
    write_model(directory, padded, config)
    assert read_config(directory) == config
    assert_same_bits(read_tensors(directory, tensor_shapes(config), dtype=dtype), tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_formats_own_library_reads_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = random_tensors(dtype=dtype)
    write_model(tmp_path / "model", tensors, TINY)
    path = tmp_path / "model" / "model.safetensors"
    expected = as_stored(tensors, prefix="transformer.")
    assert_same_bits(load_file(path), dict(sorted(expected.items())))
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    start = int.from_bytes(path.read_bytes()[:8], "little")
    assert start % 8 == 0  # so that the tensors are aligned in a mapped file


@pytest.mark.parametrize("config", [TINY, WIDE])
def test_the_layout(tmp_path: Path, config: dict[str, int | float]) -> None:
    write_model(tmp_path / "model", random_tensors(config), config)
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == sorted(ALWAYS + (TOKENIZER if config is WIDE else []))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    settings_ = json.loads((tmp_path / "model" / "config.json").read_text())
    assert settings_["n_ctx"] == settings_["n_positions"] == 16
    end_of_text = 50256 if config is WIDE else None
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    for written in (settings_, generation):
        assert written["eos_token_id"] == written["bos_token_id"] == end_of_text


def test_views_parameters_and_other_devices_are_fine(tmp_path: Path) -> None:
    tensors = random_tensors()
    strided = {
        name: torch.nn.Parameter(tensor.t().contiguous().t() if tensor.ndim == 2 else tensor)
        for name, tensor in tensors.items()
    }
    assert not strided["h.0.attn.c_proj.weight"].is_contiguous()
    write_model(tmp_path / "model", strided, TINY)
    assert_same_bits(read_tensors(tmp_path / "model", tensor_shapes(TINY)), tensors)


def test_a_directory_that_holds_something_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear reader")
    with pytest.raises(UserError, match="not empty"):
        write_model(tmp_path, random_tensors(), TINY)
    with pytest.raises(UserError, match="is a file"):
        write_model(tmp_path / "thesis.tex", random_tensors(), TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    write_model(tmp_path, random_tensors(), TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ALWAYS


def test_a_runs_directory_gets_the_models_files_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    for _ in range(2):
        tensors = random_tensors()
        write_model_files(tmp_path, tensors, TINY)
        assert_same_bits(read_tensors(tmp_path, tensor_shapes(TINY)), tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*ALWAYS, "run.json"])


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    old = random_tensors()
    write_model(tmp_path / "old", old, TINY)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
    try:
        with pytest.raises(UserError, match="no space left"):
            write_model(tmp_path / "new", random_tensors(), TINY)
        with pytest.raises(UserError, match="no space left"):
            write_model_files(tmp_path / "old", random_tensors(), TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ALWAYS
    assert_same_bits(read_tensors(tmp_path / "old", tensor_shapes(TINY)), old)


EXPORT = """
import json, sys
from pathlib import Path
import torch
from regpt.weights import tensor_shapes, write_model

config = json.loads(sys.argv[2])
tensors = {name: torch.zeros(shape) for name, shape in tensor_shapes(config).items()}

class Slow(torch.Tensor):  # gives the killer time in the middle of the file
    def cpu(self):
        print("half way", flush=True)
        import time
        time.sleep(60)

tensors["h.1.ln_1.bias"] = tensors["h.1.ln_1.bias"].as_subclass(Slow)
write_model(Path(sys.argv[1]), tensors, config)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills with a signal")
@pytest.mark.parametrize("exists", [False, True])
def test_a_killed_export_leaves_no_model(tmp_path: Path, exists: bool) -> None:
    directory = tmp_path / "model"
    if exists:
        directory.mkdir()
    command = [sys.executable, "-c", EXPORT, str(directory), json.dumps(TINY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        os.kill(process.pid, signal.SIGKILL)
    # what is left is hidden, and none of it is a model
    left = [path for path in tmp_path.rglob("*") if path != directory]
    assert any(path.name.startswith(".model.safetensors.") for path in left)
    assert all(path.name.startswith(".") for path in left)
    assert directory.exists() == exists
    # the next export takes its place and clears up
    write_model(directory, random_tensors(), TINY)
    assert sorted(path.name for path in directory.iterdir()) == ALWAYS
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
