"""Tensors in: every form in the wild, every tensor accounted for, every damage one line."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import (
    FORMS,
    TINY,
    Config,
    as_stored,
    assert_same_bits,
    configs,
    masks,
    random_tensors,
    save,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_model

from regpt import UserError
from regpt.weights import read_tensors, tensor_shapes, write_model

SHAPES = tensor_shapes(TINY)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def refusal(directory: Path) -> str:
    """The one line a directory is refused with."""
    with pytest.raises(UserError) as raised:
        read_tensors(directory, SHAPES)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    form=st.sampled_from(FORMS),
    prefixes=st.lists(st.sampled_from(["transformer.", "module.", "_orig_mod."]), max_size=3),
    masked=st.booleans(),
    head=st.sampled_from(["none", "tied", "alone"]),
    dtype=st.sampled_from(DTYPES),
    config=configs(),
)
def test_every_form_in_the_wild(
    tmp_path_factory: pytest.TempPathFactory,
    form: str,
    prefixes: list[str],
    masked: bool,
    head: str,
    dtype: torch.dtype,
    config: Config,
) -> None:
    tensors = random_tensors(config, dtype=dtype)
    stored = as_stored(tensors)
    if masked:
        stored |= masks(int(config["n_layer"]))
    prefix = "".join(prefixes)
    stored = {prefix + name: tensor for name, tensor in stored.items()}
    if head != "none":
        stored["lm_head.weight"] = stored[f"{prefix}wte.weight"]
    if head == "alone":
        del stored[f"{prefix}wte.weight"]
    directory = save(tmp_path_factory.mktemp("model"), stored, form=form)
    found = read_tensors(directory, tensor_shapes(config))
    assert_same_bits(found, {name: tensor.float() for name, tensor in tensors.items()})
    assert_same_bits(read_tensors(directory, tensor_shapes(config), dtype=dtype), tensors)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_own_their_memory(tmp_path: Path, form: str) -> None:
    directory = save(tmp_path, as_stored(random_tensors()), form=form)
    found = read_tensors(directory, SHAPES)
    for name, tensor in found.items():
        assert tensor.is_contiguous(), name
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel(), name
    # writing to a tensor changes neither the file nor, tied head or not, another tensor
    before = {name: tensor.clone() for name, tensor in found.items()}
    found["h.0.ln_1.weight"].fill_(7.0)
    assert_same_bits(
        {name: t for name, t in found.items() if name != "h.0.ln_1.weight"},
        {name: t for name, t in before.items() if name != "h.0.ln_1.weight"},
    )
    assert_same_bits(read_tensors(directory, SHAPES), before)


def test_what_safetensors_itself_leaves_of_two_tied_names(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in as_stored(random_tensors()).items():
                owner = self
                *path, leaf = f"transformer.{name}".split(".")
                for part in path:
                    if not hasattr(owner, part):
                        owner.add_module(part, torch.nn.Module())
                    owner = getattr(owner, part)
                owner.register_parameter(leaf, torch.nn.Parameter(tensor))
            self.lm_head = torch.nn.Linear(8, 40, bias=False)
            self.lm_head.weight = self.get_submodule("transformer.wte").weight

    model = Tied()
    save_model(model, str(tmp_path / "model.safetensors"))
    found = read_tensors(tmp_path, SHAPES)
    assert torch.equal(found["wte.weight"], model.lm_head.weight)


def test_a_safetensors_file_comes_before_a_pickle(tmp_path: Path) -> None:
    tensors = random_tensors()
    save(tmp_path, as_stored(random_tensors()), form="zip")
    save(tmp_path, as_stored(tensors), form="safetensors")
    assert_same_bits(read_tensors(tmp_path, SHAPES), tensors)


@pytest.mark.parametrize("form", FORMS)
def test_an_untied_head_is_refused(tmp_path: Path, form: str) -> None:
    stored = as_stored(random_tensors(), prefix="transformer.")
    head = stored["transformer.wte.weight"].clone()
    head[3, 4] = torch.nextafter(head[3, 4], torch.tensor(9.0))  # one bit of one number
    message = refusal(save(tmp_path, stored | {"lm_head.weight": head}, form=form))
    assert "lm_head.weight differs from transformer.wte.weight" in message
    assert "tied" in message


def test_a_head_of_another_dtype_is_not_the_same_bits(tmp_path: Path) -> None:
    stored = as_stored(random_tensors())
    stored["lm_head.weight"] = stored["wte.weight"].half()
    assert "tied" in refusal(save(tmp_path, stored))


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_is_accounted_for_in_one_error(tmp_path: Path, form: str) -> None:
    stored = as_stored(random_tensors(), prefix="transformer.")
    for layer in range(2):
        del stored[f"transformer.h.{layer}.ln_1.bias"]
    del stored["transformer.ln_f.weight"]
    stored["score.weight"] = torch.zeros(2, 8)
    stored["transformer.h.5.attn.extra"] = torch.zeros(2)
    stored["transformer.wpe.weight"] = torch.zeros(15, 8)
    stored["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(32, 8)  # nn.Linear's way round
    message = refusal(save(tmp_path, stored, form=form))
    assert "missing h.0.ln_1.bias, h.1.ln_1.bias, ln_f.weight;" in message
    assert "unexpected" in message
    assert "score.weight" in message
    assert "transformer.h.5.attn.extra" in message
    assert "transformer.wpe.weight is (15, 8) instead of (16, 8)" in message
    assert "transformer.h.1.mlp.c_fc.weight is (32, 8) instead of (8, 32)" in message


def test_one_dropped_tensor_is_noticed_whichever_it_is(tmp_path: Path) -> None:
    stored = as_stored(random_tensors())
    for name in stored:
        rest = {key: tensor for key, tensor in stored.items() if key != name}
        assert f"missing {name}" in refusal(save(tmp_path, rest)), name


def test_integers_are_no_weights(tmp_path: Path) -> None:
    stored = as_stored(random_tensors())
    stored["h.0.mlp.c_fc.weight"] = torch.zeros(8, 32, dtype=torch.int8)
    for form in ("safetensors", "zip"):
        message = refusal(save(tmp_path / form, stored, form=form))
        assert re.search(r"h\.0\.mlp\.c_fc\.weight is stored as (I8|int8)", message)


def test_two_names_for_one_tensor_are_refused(tmp_path: Path) -> None:
    stored = as_stored(random_tensors())
    stored["transformer.wpe.weight"] = stored["wpe.weight"] + 1
    assert "wpe.weight" in refusal(save(tmp_path, stored))


def test_a_name_in_more_than_one_line(tmp_path: Path) -> None:
    stored = as_stored(random_tensors())
    stored["wpe\nweight"] = stored.pop("wpe.weight")
    assert "wpe\\nweight" in refusal(save(tmp_path, stored))


def test_no_weights_at_all(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    assert "model.safetensors" in message
    assert "pytorch_model.bin" in message


def test_an_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    for form, name in (("safetensors", "model"), ("zip", "pytorch_model")):
        directory = save(tmp_path / form, as_stored(random_tensors()), form=f"{form} sharded")
        (shard,) = directory.glob(f"{name}-00002-of-00002.*")
        shard.unlink()
        assert shard.name in refusal(directory)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": ["a"]}',
        '{"weight_map": {"wte.weight": 3}}',
        '{"weight_map": {"wte.weight": "../model.safetensors"}}',
        '{"weight_map": {"wte.weight": "/model.safetensors"}}',
    ],
)
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    directory = save(tmp_path, as_stored(random_tensors()), form="safetensors sharded")
    save(tmp_path.parent, as_stored(random_tensors()))  # what ../ must not reach
    (directory / "model.safetensors.index.json").write_text(text)
    assert "not an index of shards" in refusal(directory)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kind=st.sampled_from(["safetensors", "zip", "legacy"]), share=st.floats(0, 0.9999))
def test_a_truncated_file(
    tmp_path_factory: pytest.TempPathFactory, kind: str, share: float
) -> None:
    directory = save(tmp_path_factory.mktemp("model"), as_stored(random_tensors()), form=kind)
    (path,) = directory.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    message = refusal(directory)
    assert path.name in message
    assert "again" in message


def test_a_pickle_cut_within_a_name_is_damaged(tmp_path: Path) -> None:
    directory = save(tmp_path / "model", as_stored(random_tensors()), form="legacy")
    (path,) = directory.iterdir()
    whole = path.read_bytes()
    begin = whole.index(b"ccollections\nOrderedDict\n")
    for end in range(begin + 1, begin + 26):
        path.write_bytes(whole[:end])
        assert "again" in refusal(directory), whole[begin:end]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kind=st.sampled_from(["safetensors", "zip", "legacy"]), data=st.data())
def test_damage_ends_in_one_line_or_in_tensors_of_the_right_shape(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    directory = save(tmp_path_factory.mktemp("model"), as_stored(random_tensors()), form=kind)
    (path,) = directory.iterdir()
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        # most of what could go wrong is in the first bytes: headers and opcodes
        place = data.draw(st.one_of(st.integers(0, 600), st.integers(0, len(content) - 1)))
        content[min(place, len(content) - 1)] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read_tensors(directory, SHAPES)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 (no error is an outcome too)
    else:
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == SHAPES


class Intruder:
    """Unpickling this calls a function: what a pickle with code in it does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path: Path, form: str) -> None:
    trace = tmp_path / "trace"
    entries = {**as_stored(random_tensors()), "extra": Intruder(trace)}
    directory = tmp_path / "model"
    if form == "plain":
        directory.mkdir()
        (directory / "pytorch_model.bin").write_bytes(pickle.dumps(entries["extra"]))
    else:
        save(directory, entries, form=form)  # pyright: ignore
    message = refusal(directory)
    assert "tensors" in message
    if form != "plain":
        assert "mkdir" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"model": {"wte.weight": torch.zeros(1)}, "step": 3}, "'model', 'step' are no tensors"),
        ([torch.zeros(1)], "no state dict"),
        ({1: torch.zeros(1)}, "no state dict"),
    ],
)
def test_a_pickle_that_is_no_state_dict(tmp_path: Path, entries: object, complaint: str) -> None:
    torch.save(entries, tmp_path / "pytorch_model.bin")
    assert complaint in refusal(tmp_path)


def test_the_placeholder_of_a_clone_without_its_large_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text(
        "version https://git-lfs.example/spec/v1\noid sha256:00\nsize 548105171\n"
    )
    assert "git lfs pull" in refusal(tmp_path)


def test_a_directory_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert "holds neither" in refusal(tmp_path)


MEASURE = """
import json, sys
from pathlib import Path
from regpt.weights import read_tensors, tensor_shapes

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

shapes = tensor_shapes(json.loads(sys.argv[2]))
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
tensors = read_tensors(Path(sys.argv[1]), shapes)
print(status("VmHWM") - before, sum(t.nbytes for t in tensors.values()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux' own accounting")
def test_the_peak_is_about_one_copy(tmp_path: Path) -> None:
    config = TINY | {"n_layer": 8, "n_head": 8, "n_embd": 512, "vocab_size": 4000}
    write_model(tmp_path / "model", random_tensors(config), config)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "model"), json.dumps(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, size = map(int, done.stdout.split())
    assert 0.9 * size < peak < 1.25 * size  # a second copy would be 2, the largest tensor is 0.07
