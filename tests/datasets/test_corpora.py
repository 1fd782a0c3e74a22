"""Corpora: exact text, exact cuts, one line for every wrong input, nothing half-downloaded."""

import errno
import gc
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regpt.core.tokenizer import Tokenizer, get_tokenizer
from regpt.datasets import corpora
from regpt.datasets.corpora import load_corpus
from regpt.datasets.corpus import Corpus, speak
from regpt.report import references
from regpt.system.errors import UserError

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare.txt"
VERSE = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 4000
DOCUMENTS = st.lists(st.text(max_size=20), max_size=6).map(tuple)
exact = settings(deadline=None, derandomize=True)


class ByteTokenizer:
    """One token per byte; what a test can check by eye."""

    vocab_size = 257
    eot = 256

    def encode_array(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8)


def complaint(sources: list[str | Path]) -> str:
    """What the person is told; always one line."""
    with pytest.raises(UserError) as caught:
        load_corpus(sources)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def kept(folder: Path) -> list[str]:
    """What lies in a folder, but for locks, which stay."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


# ── the value ──


@exact
@given(DOCUMENTS, st.integers(0, 99))
def test_split_cuts_the_whole_text_exactly(documents, percent):
    corpus = Corpus("some", documents)
    first, last = corpus.split(percent / 100)
    text = "".join(documents)
    cut = (100 - percent) * len(text) // 100
    assert ("".join(first.documents), "".join(last.documents)) == (text[:cut], text[cut:])
    assert first.name == last.name == "some"
    assert all(first.documents + last.documents)
    whole = [document for document in documents if document]
    assert len(first.documents) + len(last.documents) - len(whole) in (0, 1)


def test_split_keeps_borders_and_cuts_one_document():
    first, last = Corpus("some", ("abcd", "efgh", "ij")).split(0.4)
    assert (first.documents, last.documents) == (("abcd", "ef"), ("gh", "ij"))
    first, last = Corpus("some", ("abcd", "efgh")).split(0.5)
    assert (first.documents, last.documents) == (("abcd",), ("efgh",))
    # (1 - 0.9) * 10 is 0.9999999999999998 in floating point
    assert Corpus("some", ("abcdefghij",)).split(0.9)[0].documents == ("a",)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_split_refuses_what_is_no_fraction(fraction):
    with pytest.raises(UserError, match="validation fraction"):
        Corpus("some", ("abc",)).split(fraction)


def test_sizes_and_fingerprint():
    corpus = Corpus("some", ("naïve", "✓"))
    assert (corpus.num_characters, corpus.num_bytes) == (6, 9)
    framed = (6).to_bytes(8, "little") + "naïve".encode() + (3).to_bytes(8, "little") + "✓".encode()
    assert corpus.fingerprint == hashlib.sha256(framed).hexdigest()
    assert corpus.fingerprint == Corpus("other name", corpus.documents).fingerprint


@exact
@given(DOCUMENTS, DOCUMENTS)
def test_fingerprint_tells_documents_apart(one, other):
    same = Corpus("x", one).fingerprint == Corpus("x", other).fingerprint
    assert same == (one == other)


def test_fingerprint_sees_the_borders():
    divisions = [("abc",), ("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", "")]
    assert len({Corpus("x", documents).fingerprint for documents in divisions}) == 5


@exact
@given(DOCUMENTS)
def test_tokens_are_joined_between_documents(documents):
    tokens = Corpus("some", documents).tokens(ByteTokenizer())
    assert tokens.dtype == np.uint16
    expected = [token for text in documents for token in [*text.encode(), 256]][:-1]
    assert tokens.tolist() == expected


def test_special_tokens_in_text_are_plain_text():
    tokenizer = get_tokenizer()
    tokens = Corpus("some", ("a<|endoftext|>b", "c")).tokens(tokenizer)
    assert (tokens == tokenizer.eot).sum() == 1
    assert tokenizer.decode(tokens.tolist()) == "a<|endoftext|>b<|endoftext|>c"


def test_vocabulary_that_does_not_fit_is_refused():
    class Large(ByteTokenizer):
        vocab_size = 65536

    assert Corpus("some", ("a",)).tokens(Large()).dtype == np.uint16
    Large.vocab_size = 65537
    with pytest.raises(UserError, match="65537"):
        Corpus("some", ("a",)).tokens(Large())


def test_tiny_shakespeare_is_the_lectures():
    if not SHAKESPEARE.exists():
        pytest.skip("tiny Shakespeare is not beside the checkout")
    data = SHAKESPEARE.read_bytes()
    assert len(data) == corpora.SHAKESPEARE_BYTES
    assert hashlib.sha256(data).hexdigest() == corpora.SHAKESPEARE_DIGEST
    corpus = load_corpus([SHAKESPEARE])
    assert corpus.name == "tinyshakespeare.txt"
    assert corpus.documents == (data.decode("utf-8"),)
    first, last = corpus.split(0.1)
    assert (first.num_characters, last.num_characters) == (1_003_854, 111_540)
    tokens = corpus.tokens(get_tokenizer())
    assert tokens.shape == (338_025,)
    held_out = last.tokens(get_tokenizer())
    assert (corpus.fingerprint, len(held_out)) == (
        references.SHAKESPEARE.fingerprint,
        references.SHAKESPEARE.validation_tokens,
    )
    assert tokens[:6].tolist() == [5962, 22307, 25, 198, 8421, 356]


# ── files ──


def test_files_are_read_to_the_letter(tmp_path):
    (tmp_path / "a.txt").write_bytes("un\r\ndeux\rtrois\n\x85 naïve \u2028✓\n\n".encode())
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfmarked\xef\xbb\xbf")
    corpus = load_corpus([tmp_path / "a.txt", str(tmp_path / "b.txt")])
    assert corpus.name == "a.txt, b.txt"
    assert corpus.documents == ("un\r\ndeux\rtrois\n\x85 naïve \u2028✓\n\n", "marked\ufeff")
    assert load_corpus(str(tmp_path / "b.txt")).documents == corpus.documents[1:]


@exact
@given(
    st.lists(st.text("a1 \n'é終🙂\u3000", min_size=1, max_size=60), min_size=1, max_size=3),
    st.integers(0, 99),
    st.integers(4, 20),
    st.booleans(),
)
def test_a_file_is_what_its_text_is(tmp_path_factory, texts, percent, block, marked):
    """Read in pieces of a few bytes: the same sizes, digest, parts and tokens."""
    paths = [tmp_path_factory.getbasetemp() / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(b"\xef\xbb\xbf" * marked + text.encode())
    tokenizer, whole = get_tokenizer(), Corpus("whole", tuple(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("regpt.datasets.corpus.BLOCK_BYTES", block)
        patch.setattr("regpt.datasets.encode.BLOCK_BYTES", block)
        patch.setattr("regpt.datasets.encode.PIECE_CHARACTERS", 4)
        corpus = load_corpus(paths)
        assert corpus.num_characters == whole.num_characters
        assert corpus.num_bytes == whole.num_bytes
        assert corpus.fingerprint == whole.fingerprint
        pairs = zip(corpus.split(percent / 100), whole.split(percent / 100), strict=True)
        for part, expected in pairs:
            assert part.documents == expected.documents
            assert part.num_characters == expected.num_characters
            assert part.fingerprint == expected.fingerprint
            ids = [i for text in expected.documents for i in [*tokenizer.encode(text), 50256]]
            assert part.tokens(tokenizer).tolist() == ids[:-1]


def test_a_large_file_is_never_held_whole(tmp_path, monkeypatch):
    path = tmp_path / "large.txt"
    path.write_text("a line of a large text\n" * 150_000)  # 3.5 MB
    seen: list[int] = []

    def encode(self: Tokenizer, text: str) -> np.ndarray:
        seen.append(len(text))
        return np.zeros(1, dtype=np.uint32)

    monkeypatch.setattr(Tokenizer, "encode_array", encode)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read whole"))
    lines: list[str] = []
    monkeypatch.setattr("regpt.datasets.corpus.SPEAK_SECONDS", 0.0)
    corpus = load_corpus([path], say=lines.append)
    assert lines[0] == "reading the text, 0 of 3 MB"
    assert lines[-1] == "reading the text, 3 of 3 MB"
    assert len(corpus.tokens(get_tokenizer())) > 1
    assert max(seen) <= 1 << 16
    assert sum(seen) == path.stat().st_size


@pytest.mark.parametrize(("pause", "told"), [(0.0, 4), (1e9, 1)])
def test_progress_is_told_at_once_and_then_after_pauses(monkeypatch, pause, told):
    lines: list[str] = []
    monkeypatch.setattr("regpt.datasets.corpus.SPEAK_SECONDS", pause)
    progress = speak(lines.append, "encoding", 40 * 10**6, small=10**7)
    for done in (0, 10, 20, 30):
        progress(done * 10**6)
    assert lines == [f"encoding the text, {done} of 40 MB" for done in (0, 10, 20, 30)][:told]
    speak(lines.append, "reading", 999_999, small=10**6)(10)
    assert len(lines) == told


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("before")
    corpus = load_corpus([path])
    path.write_text("after all")
    with pytest.raises(UserError, match=r"text.txt' changed while it was read: start again"):
        corpus.tokens(get_tokenizer())
    path.unlink()
    with pytest.raises(UserError, match=r"text.txt' cannot be read: No such file"):
        corpus.tokens(get_tokenizer())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_read_once(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=("\ufeffnaïve\n".encode(),))
    writer.start()
    corpus = load_corpus([path])
    writer.join()
    assert corpus.documents == ("naïve\n",) == corpus.documents


def test_a_file_may_have_the_name_of_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pydocs").write_text("mine", encoding="utf-8")
    assert (
        load_corpus(["./pydocs"]).documents == load_corpus([Path("pydocs")]).documents == ("mine",)
    )


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"one\ntwo\ncaf\xe9\n", "is not UTF-8: byte 0xe9 at offset 11, line 3;"),
        (b"\xef\xbb\xbf\xff", "is not UTF-8: byte 0xff at offset 3, line 1;"),
        (b"\n\n\xf0\x9f", "is not UTF-8: byte 0xf0 at offset 2, line 3;"),
        ("hello".encode("utf-16"), "is not UTF-8 and looks like UTF-16: byte 0x"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
    ],
)
def test_files_that_are_no_text(tmp_path, data, where):
    (tmp_path / "bad.txt").write_bytes(data)
    message = complaint([tmp_path / "bad.txt"])
    assert where in message
    assert repr(str(tmp_path / "bad.txt")) in message


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    message = complaint(["shakespere"])
    assert "'shakespere'" in message
    assert "pydocs, shakespeare" in message
    assert "no such file" in complaint([tmp_path / "missing\n.txt"])
    assert "is a folder" in complaint([tmp_path])
    assert "pydocs, shakespeare" in complaint([])
    assert "stands alone" in complaint(["pydocs", "notes.txt"])
    (tmp_path / "file").write_text("text", encoding="utf-8")
    assert "cannot be read" in complaint([tmp_path / "file" / "below"])

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: Permission denied" in complaint([tmp_path / "file"])


# ── the download ──


class Server(ThreadingHTTPServer):
    """Answers every request with `body`, and counts them."""

    daemon_threads = False
    body = VERSE.encode()
    status = 200
    length: int | None = None  # what it claims; -1 for saying nothing
    hold = False
    delay = 0.0
    requests = 0

    def __init__(self) -> None:
        self.released = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the test."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.server.hold:
            self.server.released.wait()
            return
        time.sleep(self.server.delay)
        self.send_response(self.server.status)
        if self.server.length != -1:
            length = self.server.length or len(self.server.body)
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The cache folder."""
    folder = tmp_path / "new" / "cache"
    monkeypatch.setattr(corpora, "cache_folder", lambda: folder)
    return folder


@pytest.fixture
def server(monkeypatch, cache) -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("no_proxy", "*")
        url = f"http://127.0.0.1:{server.server_address[1]}/input.txt"
        monkeypatch.setattr(corpora, "SHAKESPEARE_URL", url)
        monkeypatch.setattr(corpora, "SHAKESPEARE_BYTES", len(server.body))
        monkeypatch.setattr(corpora, "SHAKESPEARE_DIGEST", hashlib.sha256(server.body).hexdigest())
        yield server
        server.released.set()
        server.shutdown()
        thread.join()
    gc.collect()  # a connection left open complains here, and warnings are errors


def test_shakespeare_is_downloaded_once(server, cache):
    seen: list[str] = []
    for _ in range(2):
        corpus = load_corpus(["shakespeare"], say=seen.append)
        assert (corpus.name, corpus.documents) == ("shakespeare", (VERSE,))
    assert server.requests == 1
    assert kept(cache) == ["tinyshakespeare.txt"]
    assert seen == [f"downloading shakespeare, 0.2 MB at most, from {corpora.SHAKESPEARE_URL}"]


def test_several_processes_download_once(server, tmp_path):
    server.delay = 1.0
    code = (
        "import sys; from pathlib import Path; from regpt.datasets import corpora\n"
        "corpora.SHAKESPEARE_URL, corpora.SHAKESPEARE_DIGEST = sys.argv[1:3]\n"
        "corpora.SHAKESPEARE_BYTES = int(sys.argv[3])\n"
        "corpora.cache_folder = lambda: Path(sys.argv[4])\n"
        "print(len(corpora.read_shakespeare()))\n"
    )
    pinned = (corpora.SHAKESPEARE_URL, corpora.SHAKESPEARE_DIGEST, str(corpora.SHAKESPEARE_BYTES))
    command = [sys.executable, "-c", code, *pinned, str(tmp_path / "cache")]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0] for process in several] == [f"{len(VERSE)}\n"] * 4
    assert server.requests == 1


def test_a_damaged_copy_is_downloaded_again(server, cache):
    cache.mkdir(parents=True)
    cached = cache / "tinyshakespeare.txt"
    cached.write_bytes(server.body[:-1])
    assert load_corpus(["shakespeare"]).documents == (VERSE,)
    assert cached.read_bytes() == server.body
    assert server.requests == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"length": len(VERSE) * 2, "body": VERSE.encode()[:-1]}, "wrong content, sha256"),
        ({"body": b"<html>please log in</html>"}, "wrong content, sha256"),
        ({"body": VERSE.encode() * 40}, "wrong content, sha256"),
        ({"status": 404}, "404"),
        ({"hold": True}, "timed out"),
    ],
)
def test_a_failed_download_leaves_nothing(server, cache, monkeypatch, answer, reason):
    monkeypatch.setattr(corpora, "TIMEOUT_SECONDS", 0.2 if "hold" in answer else 20.0)
    for name, value in answer.items():
        setattr(server, name, value)
    read = []
    digest = corpora.hashlib.sha256
    monkeypatch.setattr(
        corpora.hashlib, "sha256", lambda data: read.append(len(data)) or digest(data)
    )
    message = complaint(["shakespeare"])
    assert reason in message
    assert "--data FILE" in message
    assert max(read, default=0) <= len(VERSE) + 1, "read on and on"
    assert kept(cache) == []


def test_no_network_and_interruption_leave_nothing(server, cache, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_corpus(["shakespeare"])
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", "http://127.0.0.1:1/input.txt")
    assert "--data FILE" in complaint(["shakespeare"])
    assert kept(cache) == []


def test_a_cache_that_cannot_be_written_is_named(server, cache, tmp_path, monkeypatch):
    cache.parent.write_text("text", encoding="utf-8")
    assert repr(str(cache / "tinyshakespeare.txt")) in complaint(["shakespeare"])
    cache.parent.unlink()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    message = complaint(["shakespeare"])
    assert "no space left" in message
    assert "--data FILE" in message
    assert kept(cache) == []


def test_the_pinned_address_is_https():
    assert corpora.SHAKESPEARE_URL.startswith("https://")


# ── pydocs ──

JSON = '''"""The module: a docstring that is well long enough to be kept.

    Indented,\\twith a tab.   \t
"""
if True:
    class Reader:
        """A class in a branch, with an invalid escape \\d that must not warn anyone."""
        def read(self):
            """A method of the class: it comes after it and before what follows."""
            def inner():
                """A function in a function; nobody looks here but a model that learns."""
        def short(self):
            """Short."""
async def later():
    """An asynchronous function, the last docstring of this module of ours."""
    "No docstring but a string that stands around, long enough to be noticed."
def again():
    """A method of the class: it comes after it and before what follows."""
'''


def fake_python(monkeypatch, folder: Path, topics: dict[str, str] | None) -> None:
    """Let the interpreter have this standard library and this manual (None: no manual)."""
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: str(folder / name))
    manual = ModuleType("pydoc_data.topics")
    manual.__dict__["topics"] = topics
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None if topics is None else manual)


def test_pydocs_of_a_small_library(tmp_path, monkeypatch):
    email = (
        '# coding: latin-1\n"""Latin letters in an old file: é. It is read by its own cookie."""\n'
    )
    sources = {
        "json.py": JSON.encode(),
        "abc.py": b"print 'Python 2 never ends, but it is no reason to stop'",
        "ast.py": b"'null \x00 bytes'",
        "email/sub/mime.py": email.encode("latin-1"),
        "email/__init__.py": b'"""A package: its folders are walked in the order of names."""',
        "email/test/test_email.py": b'"""Tests are not documentation, whatever they say of it."""',
        "idlelib/run.py": b'"""An application in the standard library is left out of this."""',
        "zipfile.py": b'"""A lone surrogate \\udc80 cannot be written in UTF-8, it is dropped."""\n'
        b'def f():\n "A package: its folders are walked in the order of names."  # said before',
        "numpy.py": b'"""No module of the standard library, although it lies beside it."""',
    }
    for name, data in sources.items():
        (tmp_path / "stdlib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stdlib" / name).write_bytes(data)
    rglob = Path.rglob  # a file system lists in any order
    monkeypatch.setattr(Path, "rglob", lambda *args: sorted(rglob(*args), reverse=True))
    fake_python(monkeypatch, tmp_path, {"while": "  The while statement  \n", "assert": "Assert"})
    assert corpora.read_pydocs() == (
        "Assert\n",
        "The while statement\n",
        "A package: its folders are walked in the order of names.\n",
        "Latin letters in an old file: é. It is read by its own cookie.\n",
        "The module: a docstring that is well long enough to be kept.\n\n"
        "Indented,   with a tab.\n\n"
        "A class in a branch, with an invalid escape \\d that must not warn anyone.\n\n"
        "A method of the class: it comes after it and before what follows.\n\n"
        "A function in a function; nobody looks here but a model that learns.\n\n"
        "An asynchronous function, the last docstring of this module of ours.\n",
        "A lone surrogate  cannot be written in UTF-8, it is dropped.\n",
    )


def test_pydocs_where_python_lacks_a_part(tmp_path, monkeypatch):
    fake_python(monkeypatch, tmp_path, {"assert": "Assert"})
    assert corpora.read_pydocs() == ("Assert\n",)
    fake_python(monkeypatch, tmp_path, None)
    assert "neither manual nor sources" in complaint(["pydocs"])


def test_pydocs_of_this_python_is_english_and_repeatable():
    corpus = load_corpus(["pydocs"])
    text = "".join(corpus.documents)
    assert corpus.name == "pydocs"
    assert corpus.num_bytes > 1_000_000
    assert all(document.strip() and document.endswith("\n") for document in corpus.documents)
    assert "\r" not in text
    assert "\t" not in text
    assert text.count(" the ") > 5000
    # Elsewhere: another order of sets, warnings as errors, and nothing imported that acts.
    code = (
        "import sys; from regpt.datasets.corpora import load_corpus\n"
        "print(load_corpus(['pydocs']).fingerprint)\n"
        "print(*{'antigravity', 'this', 'turtle', 'tkinter', 'idlelib'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"{corpus.fingerprint}\n\n"
    assert result.stderr == ""
