"""One run, one writer: the second is refused, and a killed holder holds nothing."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runs import losses, tiny

from regpt.system.errors import UserError
from regpt.training.loop import train
from regpt.training.run_dir import RunDirectory

pytest.importorskip("fcntl", reason="no locks of files on this system")

HOLD = """
import sys, time
from pathlib import Path
from regpt.training.run_dir import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
run.lock()
print("held", flush=True)
time.sleep(600)
"""


def test_a_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    first.lock()
    with pytest.raises(UserError, match="is being trained by another process") as refused:
        second.lock()
    assert str(refused.value).startswith(f"{tmp_path} ")
    assert "\n" not in str(refused.value)
    first.release()
    second.lock()
    second.release()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="by another process"):
            run.lock()
        process.kill()
        process.wait()
    run.lock()
    run.release()


def test_a_run_under_way_is_neither_resumed_nor_begun_again(
    text_file: Path, tmp_path: Path
) -> None:
    config = tiny(text_file, tmp_path / "run", save_every=2)
    refused = []

    def intrude(text: str) -> None:
        if text.startswith("regpt train"):
            for resume in (True, False):
                with pytest.raises(UserError) as error:
                    train(config, resume=resume)
                refused.append(str(error.value))

    train(config, say=intrude)
    assert "is being trained by another process" in refused[0]
    assert "already holds a run" in refused[1]
    assert len(losses(tmp_path / "run")) == config.steps
    train(replace(config, steps=8), resume=True)  # its end gave the lock back
    assert len(losses(tmp_path / "run")) == 8


def test_a_run_that_begins_this_moment_counts(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    other = RunDirectory(tmp_path / "run")
    other.lock()
    with pytest.raises(UserError, match="is being trained by another process"):
        RunDirectory.create(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    other.release()
    RunDirectory.create(tmp_path / "run").release()
