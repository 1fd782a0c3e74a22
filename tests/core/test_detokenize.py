"""Text as it comes: whole characters, and nothing of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regpt import get_tokenizer
from regpt.core.detokenize import beginning, cut_at_stop, stream_text

TOKENIZER = get_tokenizer()


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_the_pieces_are_the_text(text: str) -> None:
    assert "".join(stream_text(TOKENIZER.encode(text), TOKENIZER)) == text


def test_a_character_of_several_tokens_comes_whole() -> None:
    ids = TOKENIZER.encode("日本🙂")
    assert len(ids) > 3
    assert list(stream_text(ids, TOKENIZER)) == ["日", "本", "🙂"]


def test_bytes_that_never_become_a_character_are_replaced_at_the_end() -> None:
    ids = TOKENIZER.encode("🙂")[:-1]
    assert "".join(stream_text(ids, TOKENIZER)) == "\ufffd"


@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    ids = [TOKENIZER.encode(letter)[0] for letter in text]  # one token per letter
    shown = "".join(stream_text(ids, TOKENIZER, stop=stop))
    # the first moment at which any stop string stands complete, letter by letter
    expected = text
    for end in range(1, len(text) + 1):
        places = [text[:end].find(word) for word in stop if word in text[:end]]
        if places:
            expected = text[: min(places)]
            break
    assert shown == expected


def test_what_may_be_a_stop_string_is_held_back() -> None:
    ids = [TOKENIZER.encode(letter)[0] for letter in "xab"]
    pieces = stream_text(ids, TOKENIZER, stop=["abc"])
    assert list(pieces) == ["x", "ab"]


@pytest.mark.parametrize(
    ("text", "stop", "held"), [("xab", "abc", 2), ("xx", "abc", 0), ("aa", "ab", 1)]
)
def test_beginnings(text: str, stop: str, held: int) -> None:
    assert beginning(text, stop) == held


def test_rows_are_cut_with_their_tokens() -> None:
    row = TOKENIZER.encode("One. Two. Three")
    prompt = len(TOKENIZER.encode("One."))
    tokens, text = cut_at_stop(row, prompt, TOKENIZER, stop=["."])
    assert text == "One. Two"
    assert TOKENIZER.decode(tokens) == "One. Two."
    assert cut_at_stop([50256, *row], 1, TOKENIZER, stop=[]) == ([50256, *row], "One. Two. Three")
