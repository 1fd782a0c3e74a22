"""examples/lecture.py runs, in its small form."""

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_lectures_stages(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from lecture import lecture

    figures = lecture(str(text_file), small=True)
    printed = capsys.readouterr().out
    assert "[15496, 11, 314, 1101, 257, 3303, 2746, 11]" in printed
    assert "(4, 32, 50257)" in printed
    assert 10.7 < figures["first"] < 11.1
    assert figures["overfit"] < figures["first"] - 0.1
    assert printed.count("> \"Hello, I'm a language model,") == 5
    sys.modules.pop("lecture")
