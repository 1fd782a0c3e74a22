"""What a run leaves: run.json, metrics.jsonl, checkpoints, incidents."""

import hashlib
import json
import shutil
from pathlib import Path

from hunting import Hunt
from hypothesis import given
from hypothesis import strategies as st
from mutations import ODD_TEXTS, damaged, json_files, json_lines
from shares import share
from test_model_files import tensor_files

READERS = (
    ("runs", "."),
    ("runs", ".", "--json"),
    ("report", "r", "--out", "out/page.html"),
    ("data", "show", "r", "--step", "2"),
    ("replay", "r", "--step", "2"),
    ("replay", "r", "--step", "4", "--json"),
    ("train", "--resume", "r", "--steps", "5"),
)
RESUMES = READERS[4:]


def placed(hunt: Hunt, run: Path, *, checkpoints: bool = True) -> tuple[Path, Path]:
    """A folder for a case, and the run's copy `r` in it."""
    place = hunt.place()
    ignored = shutil.ignore_patterns(*([] if checkpoints else ["checkpoints", "model.safetensors"]))
    return place, Path(shutil.copytree(run, place / "r", ignore=ignored))


def tried(hunt: Hunt, kind: str, command: tuple[str, ...], place: Path, about: object) -> None:
    """A command that reads the run; only a resume may change it."""
    inputs = None if command[0] == "train" else place / "r"
    outputs = [] if command[0] == "train" else [place / "out" / "page.html"]
    hunt.check(kind, command, cwd=place, inputs=inputs, about=about, outputs=outputs)


@share(0.8)
@given(data=st.data(), command=st.sampled_from(READERS))
def test_record(data: st.DataObject, command: tuple[str, ...], hunt: Hunt, run: Path) -> None:
    place, copy = placed(hunt, run, checkpoints=command in RESUMES)
    content = data.draw(json_files(json.loads((copy / "run.json").read_bytes())))
    (copy / "run.json").write_bytes(content)
    tried(hunt, "run.json", command, place, content[:1500])


@share(0.7)
@given(data=st.data(), command=st.sampled_from((*READERS[:3], *READERS[:3], READERS[-1])))
def test_metrics(data: st.DataObject, command: tuple[str, ...], hunt: Hunt, run: Path) -> None:
    place, copy = placed(hunt, run, checkpoints=command in RESUMES)
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines.append({"step": 4, "hellaswag_acc_norm": 0.3, "hellaswag_acc_norm_stderr": 0.1,
                  "hellaswag_examples": 10, "hellaswag_acc": 0.2})  # fmt: skip
    content = data.draw(json_lines(lines))
    (copy / "metrics.jsonl").write_bytes(content)
    tried(hunt, "metrics.jsonl", command, place, content[:1500])


@share(0.6)
@given(data=st.data(), command=st.sampled_from(RESUMES), sealed=st.booleans())
def test_checkpoints(
    data: st.DataObject, command: tuple[str, ...], sealed: bool, hunt: Hunt, run: Path
) -> None:
    place, copy = placed(hunt, run)
    folder = copy / "checkpoints" / "step-00000004"
    if data.draw(st.booleans()):  # the other alone
        shutil.rmtree(folder)
        folder = folder.with_name("step-00000002")
    name = data.draw(
        st.sampled_from(("state.json", "state.json", "manifest.json", "optimizer.safetensors",
                         "model.safetensors", "config.json", "../latest", "../best"))
    )  # fmt: skip
    file = folder / name
    content = file.read_bytes()
    if name.endswith(".json"):
        content = data.draw(json_files(json.loads(content)))
    elif name.endswith(".safetensors"):
        content = data.draw(tensor_files(content))
    else:
        odd = st.sampled_from([text.encode("utf-8", "replace") for text in ODD_TEXTS])
        content = data.draw(st.one_of(damaged(content), odd))
    file.write_bytes(content)
    if sealed and folder == file.parent and name != "manifest.json":  # whoever wrote it meant it
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
    tried(hunt, "checkpoints", command, place, (name, sealed, content[:900]))


@share(0.1)
@given(content=json_files({"step": 2, "loss": None, "grad_norm": 1.5, "fault": "loss is nan"}))
def test_incidents(content: bytes, hunt: Hunt, run: Path) -> None:
    place, copy = placed(hunt, run)
    folder = copy / "incidents" / "step-00000002"
    folder.mkdir(parents=True)
    (folder / "report.json").write_bytes(content)
    tried(hunt, "incidents", ("replay", "r", "--step", "2"), place, content[:900])


FILES = (
    "run.json", "metrics.jsonl", "checkpoints", "checkpoints/step-00000004", "lock", "samples.txt",
    "checkpoints/step-00000004/state.json", "checkpoints/latest", "checkpoints/step-odd",
    "config.json", "incidents",
)  # fmt: skip


@share(0.4)
@given(
    name=st.sampled_from(FILES),
    kind=st.sampled_from(("folder", "file", "dangling", "loop", "/dev/null", "nothing")),
    command=st.sampled_from(READERS[1:]),
)
def test_files_of_another_kind(
    name: str, kind: str, command: tuple[str, ...], hunt: Hunt, run: Path
) -> None:
    place, copy = placed(hunt, run)
    path = copy / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("odd")
    elif kind != "nothing":
        path.symlink_to({"dangling": "nowhere/at/all", "loop": path.name}.get(kind, kind))
    hunt.check("paths", command, cwd=place, inputs=None, about=(name, kind))
