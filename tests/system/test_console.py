"""Lines for people are printed as they are."""

import io

from regpt.system.console import Console


def test_a_line_is_said_as_it_is() -> None:
    file = io.StringIO()
    text = ":smile: [bold]not markup[/bold] " + "a path " * 40
    Console(file=file, width=40, color_system="truecolor", force_terminal=True).say(text)
    assert file.getvalue() == text + "\n"
