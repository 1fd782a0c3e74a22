"""Names to directories: local ones as they are, hub models from the cache, refusals."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from regpt import UserError
from regpt.weights import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refusal(name: str | Path, *, revision: str | None = None) -> str:
    with pytest.raises(UserError) as raised:
        locate(name, revision=revision)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach the hub fails the test."""

    def snapshot_download(*_: object, **__: object) -> str:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)


@pytest.mark.usefixtures("no_hub")
def test_a_directory_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "run.json").touch()
    monkeypatch.chdir(tmp_path)
    assert locate(tmp_path / "gpt2") == tmp_path / "gpt2"
    assert locate(str(tmp_path / "gpt2")) == tmp_path / "gpt2"
    assert locate("gpt2") == Path("gpt2")
    assert locate("./gpt2/") == Path("gpt2")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/gpt2") == tmp_path / "gpt2"


@pytest.mark.usefixtures("no_hub")
def test_what_can_only_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("./gpt2", "../gpt2", "~/gpt2", "/gpt2", "a/b/c", "gpt2/", "runs/a", "a\\b"):
        assert "no such directory" in refusal(name), name
    assert "no such directory" in refusal(Path("gpt2"))
    assert "empty" in refusal("")


@pytest.mark.usefixtures("no_hub")
def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "is a file" in refusal(str(tmp_path / "model.safetensors"))


@pytest.mark.usefixtures("no_hub")
def test_a_directory_has_no_revisions(tmp_path: Path) -> None:
    assert "revision 'main'" in refusal(tmp_path, revision="main")


def cached(home: Path, name: str, files: tuple[str, ...]) -> Path:
    """A model as it lies in the hub's cache."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for file in files:
        (snapshot / file).write_text("{}")
    return snapshot


OFFLINE = """
import socket, sys

def refuse(*args, **kwargs):
    sys.exit("opened a socket")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.create_connection = socket.getaddrinfo = refuse
from regpt import UserError
from regpt.weights import locate
for name in sys.argv[1:]:
    name, _, revision = name.partition("@")
    try:
        print(locate(name, revision=revision or None))
    except UserError as error:
        print("UserError", error)
"""


def test_offline_the_cache_serves_and_no_socket_is_opened(tmp_path: Path) -> None:
    whole = cached(tmp_path, "gpt2", ("config.json", "model.safetensors", "vocab.json"))
    pickled = cached(tmp_path, "owner/old", ("config.json", "pytorch_model.bin"))
    cached(tmp_path, "owner/half", ("config.json",))
    names = ["gpt2", f"gpt2@{COMMIT}", "owner/old", "gpt2@v2", "owner/none", "owner/half", "a b"]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *names],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == [str(whole), str(whole), str(pickled)]
    for line, name in zip(lines[3:], ["gpt2", "owner/none", "owner/half", "a b"], strict=True):
        assert line.startswith("UserError")
        assert repr(name) in line
    assert "no network" in lines[4]
    assert "'random'" in lines[4]
    assert "directory" in lines[4]


def hub_of(monkeypatch: pytest.MonkeyPatch, directory: Path, files: tuple[str, ...]) -> list[str]:
    """A hub that has these files; the list grows by each file fetched."""
    fetched: list[str] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        for file in files:
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (directory / file).touch()
                fetched.append(file)
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return fetched


def test_only_what_we_read_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = ("tf_model.h5", "flax_model.msgpack", "onnx/decoder.onnx", "64.tflite", "README.md")
    files = (*others, "config.json", "model.safetensors", "pytorch_model.bin", "vocab.json")
    fetched = hub_of(monkeypatch, tmp_path, files)
    assert locate("gpt2") == tmp_path
    assert sorted(fetched) == ["config.json", "model.safetensors", "vocab.json"]


def test_a_pickle_is_fetched_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    fetched = hub_of(monkeypatch, tmp_path, ("config.json", *shards, "rust_model.ot"))
    locate("owner/old")
    assert set(fetched) == {"config.json", *shards}


def test_sharded_safetensors_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("model-00001-of-00001.safetensors", "model.safetensors.index.json")
    fetched = hub_of(monkeypatch, tmp_path, (*files, "pytorch_model.bin"))
    locate("owner/new")
    assert set(fetched) == set(files)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("RepositoryNotFoundError", "neither a directory nor a model on the hub"),
        ("GatedRepoError", "gated"),
        ("RevisionNotFoundError", "no revision 'v9'"),
        ("HFValidationError", "possible name"),
        ("LocalEntryNotFoundError", "no network"),
        ("HfHubHTTPError", "cannot be fetched (HfHubHTTPError: the reason):"),
    ],
)
def test_what_the_hub_answers(monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    from huggingface_hub import errors

    def snapshot_download(*_: object, **__: object) -> str:
        error = getattr(errors, kind).__new__(getattr(errors, kind))
        error.args = ("the reason\nand pages of advice",)
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    message = refusal("owner/name", revision="v9")
    assert words in message
    assert "'owner/name'" in message


class ProxyError(Exception):
    """A transport's own exception, of no base class that we could name."""


def test_what_a_transport_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, local_files_only: bool = False, **__: object) -> str:
        raise FileNotFoundError if local_files_only else ProxyError("refused\nat length")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert "cannot be fetched (ProxyError: refused):" in refusal("gpt2")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_without_the_hub_the_cache_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / weights).touch()

    def snapshot_download(*_: object, local_files_only: bool = False, **__: object) -> str:
        if not local_files_only:
            raise ProxyError
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert locate("gpt2") == tmp_path


def test_a_hub_model_without_weights_we_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_of(monkeypatch, tmp_path, ("config.json", "tf_model.h5"))
    assert "'owner/tf' has neither model.safetensors nor" in refusal("owner/tf")
