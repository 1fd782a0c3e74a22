"""Lines for people are printed as they are."""

import io

from regpt.system.console import Console


def test_a_line_is_said_as_it_is() -> None:
    file = io.StringIO()
    text = ":smile: [bold]not markup[/bold] " + "a path " * 40
    Console(file=file, width=40, color_system="truecolor", force_terminal=True).say(text)
    assert file.getvalue() == text + "\n"


def test_half_a_surrogate_pair_is_a_question_mark() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    Console(file=file).say("fault \ud800 here")
    file.seek(0)
    assert file.read() == "fault ? here\n"
