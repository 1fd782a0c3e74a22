"""The exported tokenizer is GPT-2's: OpenAI's own bytes, and equal tokens in transformers."""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from regpt import UserError, get_tokenizer
from regpt.core.tokenizer import load_ranks
from regpt.weights.tokenizer_files import (
    FOREIGN_FILES,
    KNOWN_FILES,
    check_tokenizer,
    find_merges,
    tokenizer_files,
    write_tokenizer_files,
)

# Published beside the released models; tiktoken checks what it downloads against the same two.
OPENAI = {
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the four files."""
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer_files(directory)
    return directory


@lru_cache(maxsize=1)
def theirs(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("name", OPENAI)
def test_the_two_files_of_the_release_byte_for_byte(directory: Path, name: str) -> None:
    assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == OPENAI[name]


def test_each_merge_joins_two_older_tokens() -> None:
    ranks = load_ranks()
    merges = find_merges()
    assert len(merges) == 50_000
    for rank, (left, right) in enumerate(merges, start=256):
        assert ranks[left + right] == rank
        assert max(ranks[left], ranks[right]) < rank


CHARACTERS = st.characters(codec="utf-8")  # all but lone surrogates, which are no text
TEXTS = st.one_of(
    st.text(CHARACTERS),
    st.text(alphabet=" \t\n\r\v\f\u00a0\u2003\u3000a.'1"),
    st.text(alphabet=" '\u2019stredvlmSTDonetkl|<>_endoftext0123456789"),
    st.text(st.characters(codec="utf-8", min_codepoint=0x300, max_codepoint=0x1F9FF)),
    st.lists(st.sampled_from(["<|endoftext|>", "<|", "|>", " ", "\n", "the", "'ll", "é"])).map(
        "".join
    ),
)


@settings(deadline=None, max_examples=300)
@given(TEXTS)
@example("Hello, I'm a language model,")
@example("  <|endoftext|>\n<|endoftext|> x")
@example("naïve café \N{FAMILY}\N{ZERO WIDTH JOINER}\N{GIRL} 한국어 ﷺ")
def test_equal_tokens_and_text_in_transformers(directory: Path, text: str) -> None:
    ids = get_tokenizer().encode(text, allow_special=True)
    assert theirs(directory)(text)["input_ids"] == ids
    assert theirs(directory).decode(ids) == get_tokenizer().decode(ids)
    plain = theirs(directory)(text, split_special_tokens=True)["input_ids"]
    assert plain == get_tokenizer().encode(text)


def test_what_transformers_makes_of_it(directory: Path) -> None:
    tokenizer = theirs(directory)
    assert type(tokenizer).__name__ == "GPT2Tokenizer"
    assert len(tokenizer) == 50257
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (50256, 50256)
    assert tokenizer.model_max_length == 1024
    # transformers 4 would otherwise delete spaces before punctuation
    assert tokenizer.clean_up_tokenization_spaces is False
    assert tokenizer.decode([1279, 764, 5145]) == get_tokenizer().decode([1279, 764, 5145])


def test_the_longest_text_is_the_models(tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path, block_size=64)
    assert theirs(tmp_path).model_max_length == 64


@pytest.mark.parametrize("known", [True, False], ids=["by digest", "by content"])
def test_each_file_alone_passes_the_check(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if not known:
        monkeypatch.setattr("regpt.weights.tokenizer_files.KNOWN_FILES", {})
    check_tokenizer(tmp_path)  # none at all
    check_tokenizer(directory)
    for name, content in tokenizer_files().items():
        assert isinstance(content, bytes)
        if name in KNOWN_FILES:
            assert hashlib.sha256(content).hexdigest() == KNOWN_FILES[name]
        alone = tmp_path / name.replace(".", "-")
        alone.mkdir()
        (alone / name).write_bytes(content)
        check_tokenizer(alone)


def test_what_transformers_saves_passes_the_check(directory: Path, tmp_path: Path) -> None:
    theirs(directory).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    check_tokenizer(tmp_path)


def test_a_release_with_other_furniture_passes(directory: Path, tmp_path: Path) -> None:
    # newer writers: pairs instead of strings, the special token beside the vocabulary
    whole = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    whole["model"]["merges"] = [merge.split(" ") for merge in whole["model"]["merges"]]
    del whole["model"]["vocab"]["<|endoftext|>"]
    whole["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    merges = (directory / "merges.txt").read_text(encoding="utf-8")
    (tmp_path / "merges.txt").write_text(merges.partition("\n")[2].replace("\n", os.linesep))
    (tmp_path / "vocab.txt").touch()  # a stray one beside GPT-2's
    check_tokenizer(tmp_path)


def set_in(whole: Any, value: Any, *path: Any) -> None:
    for part in path[:-1]:
        whole = whole[part]
    whole[path[-1]] = value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("WordPiece", ("model", "type")),
        ({"type": "Lowercase"}, ("normalizer",)),
        (None, ("pre_tokenizer",)),
        ({"type": "Whitespace"}, ("pre_tokenizer",)),
        (True, ("pre_tokenizer", "add_prefix_space")),
        (False, ("pre_tokenizer", "use_regex")),
        ({"type": "TemplateProcessing"}, ("post_processor",)),
        ("a b", ("model", "merges", 77)),
        (50255, ("model", "vocab", "hello")),
        (50257, ("model", "vocab", "more")),
        ("[PAD]", ("added_tokens", 0, "content")),
        (50255, ("added_tokens", 0, "id")),
    ],
)
def test_every_part_that_changes_tokens_is_checked(
    directory: Path, tmp_path: Path, value: object, path: tuple[Any, ...]
) -> None:
    whole = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    set_in(whole, value, *path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert "tokenizer.json: not GPT-2's" in refusal(tmp_path)


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as raised:
        check_tokenizer(directory)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_another_vocabulary_of_the_same_size(directory: Path, tmp_path: Path) -> None:
    vocabulary = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["the"], vocabulary["cat"] = vocabulary["cat"], vocabulary["the"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    assert "vocab.json: not GPT-2's tokenizer (another vocabulary" in refusal(tmp_path)


def test_merges_in_another_order(directory: Path, tmp_path: Path) -> None:
    lines = (directory / "merges.txt").read_text(encoding="utf-8").splitlines()
    lines[500], lines[501] = lines[501], lines[500]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    assert "other merges, 50000 of them" in refusal(tmp_path)
    (tmp_path / "merges.txt").write_text("\n".join(lines[:9]), encoding="utf-8")
    assert "other merges, 8 of them" in refusal(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"add_prefix_space": True},
        {"add_bos_token": True},
        {"tokenizer_class": "BertTokenizer"},
        {"added_tokens_decoder": {"50257": {"content": "<|user|>"}}},
    ],
)
def test_settings_that_change_tokens(tmp_path: Path, change: dict[str, object]) -> None:
    settings_ = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False} | change
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_))
    assert "tokenizer_config.json: not GPT-2's" in refusal(tmp_path)


def test_tokens_added_to_gpt2s(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text('{"<|user|>": 50257}')
    assert "'<|user|>'" in refusal(tmp_path)


@pytest.mark.parametrize("name", FOREIGN_FILES)
def test_files_of_other_tokenizers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\xff")
    assert name in refusal(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"3", b"[]", b'"a"', b"\xff"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in refusal(tmp_path)
