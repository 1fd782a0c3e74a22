"""GPT-2's tokens, offline, and a decoder that never raises."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regpt import UserError, get_tokenizer
from regpt.core import tokenizer as module


def test_the_lectures_prompt() -> None:
    ids = [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert get_tokenizer().encode("Hello, I'm a language model,") == ids


def test_tiny_shakespeare(shakespeare: Path) -> None:
    ids = get_tokenizer().encode(shakespeare.read_text(encoding="utf-8"))
    assert len(ids) == 338_025
    assert ids[:6] == [5962, 22307, 25, 198, 8421, 356]


@given(st.text())
def test_text_comes_back(text: str) -> None:
    tokenizer = get_tokenizer()
    expected = text.encode("utf-8", "replace").decode() if text.isascii() else text
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@given(st.text(st.characters() | st.sampled_from("\ud800<|endoftext|>")))
@example("a<|endoftext|>b")
def test_ids_as_an_array_are_those_of_the_list(text: str) -> None:
    tokenizer = get_tokenizer()
    assert tokenizer.encode_array(text).tolist() == tokenizer.encode(text)


@given(st.lists(st.integers(min_value=0, max_value=60_000), max_size=40))
def test_decoding_never_raises(ids: list[int]) -> None:
    assert isinstance(get_tokenizer().decode(ids), str)


def test_ids_outside_the_vocabulary_become_a_replacement_character() -> None:
    assert get_tokenizer().decode([50257, 15496, 99999, -1]) == "\ufffdHello\ufffd\ufffd"


def test_special_tokens_in_text_are_plain_text() -> None:
    tokenizer = get_tokenizer()
    plain = tokenizer.encode("a<|endoftext|>b")
    assert 50256 not in plain
    assert tokenizer.decode(plain) == "a<|endoftext|>b"
    assert tokenizer.encode("a<|endoftext|>b", allow_special=True) == [64, 50256, 65]


def test_a_changed_merge_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIGEST", "0" * 64)
    with pytest.raises(UserError, match="sha256"):
        module.load_ranks()
