"""GPT-2's tokenizer as the files other programs read, and the check that a model's files are it.

regpt itself needs one table: bytes in rank order (tokenizer.py). The ecosystem wants vocab.json and
merges.txt (OpenAI's own two, byte for byte), tokenizer.json (both in one, for Hugging Face's
tokenizers) and tokenizer_config.json.

The merges are nowhere in the table and need not be: the merge that made a token is the last one
that byte-pair encoding makes of its bytes with only the older tokens. Most tokens can be cut in one
way only into two older ones; for the few others the merging is replayed.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from regpt.core.tokenizer import END_OF_TEXT, END_OF_TEXT_ID, load_ranks
from regpt.system.errors import UserError
from regpt.system.files import Content, replace_files
from regpt.system.json_text import parse_json

VOCABULARY_DIGEST = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
MERGES_DIGEST = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
"""sha256 of vocab.json and merges.txt as released, so that checking them needs no tables."""
KNOWN_FILES = {
    "vocab.json": VOCABULARY_DIGEST,
    "merges.txt": MERGES_DIGEST,
    "tokenizer.json": "9062e5a437458b944a545c4d60257e4d6d2a29193c44871d3542da1012aeed29",
}
"""sha256 of the files that we write, so that checking them needs no parsing."""

FOREIGN_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
"""Files of other kinds of tokenizer (SentencePiece, WordPiece): GPT-2 has none of them."""

GPT2_CLASSES = (
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)
"""The classes of transformers that a GPT-2 tokenizer is saved under, old and new."""


@lru_cache(maxsize=1)
def byte_alphabet() -> list[str]:
    """One visible character per byte, in OpenAI's order of the 256 (src/encoder.py).

    Printable Latin-1 characters stand for themselves; the other 68 bytes take the code points
    from 256 on, so that no token file ever contains white space or control characters.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]


def find_merges() -> list[tuple[bytes, bytes]]:
    """The 50,000 merges in rank order, each as its two halves."""
    ranks = load_ranks()
    tokens = sorted(ranks, key=ranks.__getitem__)
    return [_last_merge(token, ranks) for token in tokens if len(token) > 1]


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two halves whose merge made `token`."""
    limit, rank = ranks[token], ranks.get
    cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
    older = [cut for cut in cuts if rank(cut[0], limit) < limit and rank(cut[1], limit) < limit]
    if len(older) == 1:
        return older[0]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], limit) for i in range(len(parts) - 1)]
        i = pairs.index(min(pairs))
        assert pairs[i] < limit, f"{token!r} cannot be reached by merging older tokens"
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


@lru_cache(maxsize=1)
def spelled_vocabulary() -> dict[str, int]:
    """Spelling in the visible alphabet to id, in the order of the ids."""
    ranks = load_ranks()
    vocabulary = {_spell(token): ranks[token] for token in sorted(ranks, key=ranks.__getitem__)}
    return vocabulary | {END_OF_TEXT: END_OF_TEXT_ID}


@lru_cache(maxsize=1)
def spelled_merges() -> list[str]:
    """The merges as "left right" in the visible alphabet."""
    return [f"{_spell(left)} {_spell(right)}" for left, right in find_merges()]


def _spell(token: bytes) -> str:
    return "".join(map(byte_alphabet().__getitem__, token))


def _as_vocab_json(vocabulary: Mapping[str, int]) -> bytes:
    return json.dumps(vocabulary).encode()


def _as_merges_txt(merges: Iterable[str]) -> bytes:
    return "\n".join(["#version: 0.2", *merges, ""]).encode()


@lru_cache(maxsize=1)
def _tables() -> dict[str, Content]:
    """The three files that every model shares; kept for the process: 3 MB."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    end_of_text = {
        "id": END_OF_TEXT_ID,
        "content": END_OF_TEXT,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end_of_text],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": spelled_vocabulary(),
            # one string per merge: the form that old and new readers share
            "merges": spelled_merges(),
        },
    }
    return {
        "vocab.json": _as_vocab_json(spelled_vocabulary()),
        "merges.txt": _as_merges_txt(spelled_merges()),
        "tokenizer.json": json.dumps(whole, ensure_ascii=False).encode(),
    }


def tokenizer_files(*, block_size: int = 1024) -> dict[str, Content]:
    """The four files by name. `block_size` is the longest text the model takes, in tokens."""
    settings = {
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        # transformers 4 would delete the space before punctuation when it decodes
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": block_size,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": END_OF_TEXT,
    }
    return _tables() | {"tokenizer_config.json": json.dumps(settings, indent=2).encode() + b"\n"}


def write_tokenizer_files(directory: Path, *, block_size: int = 1024) -> None:
    """Write the four files into an existing directory, each whole or not at all."""
    replace_files(directory, tokenizer_files(block_size=block_size))


def check_tokenizer(directory: Path) -> None:
    """Refuse a model directory whose tokenizer files are not GPT-2's; no files are fine.

    Compares vocab.json, merges.txt, tokenizer.json and the settings that change tokens, whichever
    are there. Raises `UserError` naming the file and what differs.
    """
    found = [name for name in CHECKS if (directory / name).is_file()]
    for name in found:
        path = directory / name
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == KNOWN_FILES.get(name):
                continue
            text = content.decode()
            lines = [line for line in text.splitlines() if line and not line.startswith("#version")]
            difference = CHECKS[name](lines if name == "merges.txt" else parse_json(text))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # not JSON, or JSON of another form than every tokenizer file has
            message = f"{path}: not a readable tokenizer file; fetch it again or remove it"
            raise UserError(message) from error
        if difference:
            _refuse(path, difference)
    if not {"vocab.json", "tokenizer.json"} & set(found):
        for name in FOREIGN_FILES:
            if (directory / name).is_file():
                _refuse(directory / name, "GPT-2's has no such file")


def _refuse(path: Path, difference: str) -> NoReturn:
    raise UserError(
        f"{path}: not GPT-2's tokenizer ({difference}), the only one regpt has; use a model with "
        "GPT-2's, or remove the tokenizer files if they do not belong to this model"
    )


def _differs_in_vocabulary(theirs: dict[str, int]) -> str | None:
    in_order = dict(sorted(theirs.items(), key=lambda item: item[1]))
    same = hashlib.sha256(_as_vocab_json(in_order)).hexdigest() == VOCABULARY_DIGEST
    return None if same else f"another vocabulary, of {len(theirs)} tokens"


def _differs_in_merges(theirs: list[str]) -> str | None:
    same = hashlib.sha256(_as_merges_txt(theirs)).hexdigest() == MERGES_DIGEST
    return None if same else f"other merges, {len(theirs)} of them"


def _differs_as_a_whole(whole: dict[str, Any]) -> str | None:
    """tokenizer.json: the model, and every step around it that could change tokens."""
    model, splitter = whole["model"], whole.get("pre_tokenizer") or {}
    last = whole.get("post_processor") or {"type": "ByteLevel"}
    right = {
        "model": model.get("type", "BPE") == "BPE",
        "normalizer": whole.get("normalizer") is None,
        "pre_tokenizer": splitter.get("type") == "ByteLevel"
        and splitter.get("use_regex", True)
        and not splitter.get("add_prefix_space"),
        "post_processor": last.get("type") == "ByteLevel",
    }
    if wrong := [part for part, is_right in right.items() if not is_right]:
        return f"another {', '.join(wrong)}"
    added = {token["content"]: token["id"] for token in whole.get("added_tokens") or []}
    # newer writers keep the special token out of the vocabulary proper
    special = {token: i for token, i in added.items() if token == END_OF_TEXT}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return (
        _differs_in_vocabulary(model["vocab"] | special)
        or _differs_in_merges(merges)
        or _differs_in_added_tokens(added)
    )


def _differs_in_settings(settings: dict[str, Any]) -> str | None:
    for name in ("add_prefix_space", "add_bos_token", "add_eos_token", "do_lower_case"):
        if settings.get(name):
            return f"{name} is true"
    kind = settings.get("tokenizer_class")
    if kind not in (None, *GPT2_CLASSES):
        return f"tokenizer_class {kind}"
    added = settings.get("added_tokens_decoder") or {}
    return _differs_in_added_tokens({token["content"]: int(i) for i, token in added.items()})


def _differs_in_added_tokens(added: dict[str, int]) -> str | None:
    extra = [token for token, i in added.items() if (token, i) != (END_OF_TEXT, END_OF_TEXT_ID)]
    return f"added tokens {', '.join(map(repr, extra))}" if extra else None


CHECKS: dict[str, Callable[[Any], str | None]] = {
    "vocab.json": _differs_in_vocabulary,
    "merges.txt": _differs_in_merges,
    "tokenizer.json": _differs_as_a_whole,
    "tokenizer_config.json": _differs_in_settings,
    "added_tokens.json": _differs_in_added_tokens,
}
"""What in the files of a GPT-2 tokenizer is another one's."""
