"""Texts to learn from: two that have a name, and any UTF-8 files.

- `pydocs`: the topics of Python's own manual and the docstrings of the standard library, read from
  the running interpreter, so that there is English to train on with no network and no file. The
  library is parsed, never imported: importing all of it opens a browser and starts Tk. The text
  belongs to one build of Python, and so does its fingerprint.
- `shakespeare`: tiny Shakespeare, downloaded once into the user's cache folder, its digest
  verified at every reading.
- files, one document each: UTF-8 whatever the locale says, line ends untouched, a byte order mark
  at the start dropped.

    >>> training, validation = load_corpus(["shakespeare"]).split(0.1)
    >>> training.num_characters, validation.num_characters
    (1003854, 111540)
"""

import ast
import contextlib
import hashlib
import inspect
import io
import sys
import sysconfig
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

from regpt.datasets.corpus import Corpus, Document, Say, TextFile, count_characters, silent
from regpt.system.cache_folder import cache_folder, file_lock
from regpt.system.errors import UserError
from regpt.system.files import refuse_device, replace_files

CORPORA = {
    "pydocs": "Python's manual topics and the standard library's docstrings, on every machine",
    "shakespeare": "tiny Shakespeare, 1.1 MB, downloaded once",
}

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_BYTES = 1_115_394
SHAKESPEARE_DIGEST = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TIMEOUT_SECONDS = 20.0

# Applications, code tables, and what later Pythons no longer have.
SKIPPED_MODULES = {"distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "turtledemo"}
SKIPPED_FOLDERS = {"test", "tests", "idle_test"}
SHORTEST_DOCSTRING = 40

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)


def load_corpus(sources: Sequence[str | Path], *, say: Say = silent) -> Corpus:
    """One name from CORPORA, or files. `say` is told of a download, and of large files."""
    if isinstance(sources, str | Path):  # a str is a Sequence[str], so no type checker objects
        sources = [sources]
    if not sources:
        raise UserError(f"no data given: name one of {', '.join(CORPORA)}, or UTF-8 files")
    named = [source for source in sources if isinstance(source, str) and source in CORPORA]
    if named and len(sources) > 1:
        raise UserError(
            f"data {named[0]!r} is a named text and stands alone; write ./{named[0]} for a file"
        )
    if named == ["pydocs"]:
        return Corpus("pydocs", read_pydocs())
    if named == ["shakespeare"]:
        return Corpus("shakespeare", (read_shakespeare(say),))
    paths = [Path(source) for source in sources]
    name = ", ".join(path.name for path in paths)
    return Corpus(name, tuple(read_text_file(path, say) for path in paths))


def read_text_file(path: Path, say: Say = silent) -> Document:
    """One UTF-8 file, read over once: every character as it stands, but for a byte order mark.

    What is not on a disk, as a pipe, can be read only once: it is held in memory.
    """
    shown = repr(str(path))
    try:
        if path.is_dir():
            raise UserError(f"data {shown} is a folder; name the files in it")
        refuse_device(path)
        if path.is_file():
            text = TextFile.check(path, say)
        else:
            data = path.read_bytes()
            start, _ = count_characters(io.BytesIO(data), path)
            text = data[start:].decode()
    except FileNotFoundError:
        names = ", ".join(CORPORA)
        raise UserError(f"data {shown}: no such file, and no named text ({names})") from None
    except OSError as error:
        raise UserError(f"data file {shown} cannot be read: {error_reason(error)}") from None
    if not len(text):
        raise UserError(f"data file {shown} is empty; give a file with text in it")
    return text


def read_shakespeare(say: Say = silent) -> str:
    """Tiny Shakespeare from the cache folder, downloaded into it first where need be."""
    data = download_once(
        "shakespeare",
        SHAKESPEARE_URL,
        cache_folder() / "tinyshakespeare.txt",
        digest=lambda data: f"sha256 {hashlib.sha256(data).hexdigest()}",
        expected=f"sha256 {SHAKESPEARE_DIGEST}",
        limit=SHAKESPEARE_BYTES,
        way_out="give a text with --data FILE, or take --data pydocs",
        say=say,
    )
    return data.decode("utf-8")


def download_once(
    name: str,
    url: str,
    path: Path,
    *,
    digest: Callable[[bytes], str],
    expected: str,
    limit: int,
    way_out: str,
    say: Say = silent,
) -> bytes:
    """The bytes of the file kept at `path`, downloaded where it is absent or damaged; one process
    does it.

    `digest` tells the right bytes, the `expected` ones, at every reading; at most about `limit`
    bytes are read. `name` is what the file is called in an error, which `way_out` completes: what
    to do without a network. `say` is told of a download. Raises UserError where the file is not
    there, and cannot be downloaded or kept.
    """

    def verified(data: bytes) -> bytes:
        if (found := digest(data)) != expected:
            raise OSError(f"wrong content, {found}, expected {expected}")
        return data

    with contextlib.suppress(OSError):  # absent, damaged, or not readable: writing will tell why
        return verified(path.read_bytes())
    say(f"downloading {name}, {limit / 1e6:.1f} MB at most, from {url}")
    try:
        with file_lock(path):
            with contextlib.suppress(OSError):  # another process has fetched it meanwhile
                return verified(path.read_bytes())
            data = verified(download(url, limit=limit))
            replace_files(path.parent, {path.name: data})
    except (OSError, HTTPException, UserError) as error:
        raise UserError(
            f"cannot download {name} from {url} to {str(path)!r}: {error_reason(error)}; {way_out}"
        ) from None
    return data


def download(url: str, *, limit: int) -> bytes:
    """The bytes behind `url`, or one more than `limit` of them."""
    request = urllib.request.Request(url, headers={"User-Agent": "regpt"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return response.read(limit + 1)
    except HTTPError as error:
        error.close()  # it is also a response, and holds the connection
        raise


def error_reason(error: BaseException) -> str:
    """What an operating system or network error says, in one line."""
    cause = error.reason if type(error) is URLError else error
    return " ".join(str(getattr(cause, "strerror", None) or cause or repr(cause)).split())


def read_pydocs() -> tuple[str, ...]:
    """Manual topics by name, then one document per standard library module, no docstring twice.

    An interpreter that carries no sources (a zip, a frozen application) has its topics only.
    """
    documents: list[str] = []
    with contextlib.suppress(ImportError):  # a minimal Python leaves its manual out
        from pydoc_data.topics import topics

        documents += [tidy(topics[name]) + "\n" for name in sorted(topics)]
    seen: set[str] = set()
    for path in find_library_sources(Path(sysconfig.get_path("stdlib"))):
        found = dict.fromkeys(read_docstrings(path))
        fresh = [text for text in found if len(text) >= SHORTEST_DOCSTRING and text not in seen]
        seen.update(fresh)
        if fresh:
            documents.append("\n\n".join(fresh) + "\n")
    if not documents:
        raise UserError("this Python carries neither manual nor sources: use --data FILE")
    return tuple(documents)


def find_library_sources(folder: Path) -> Iterator[Path]:
    """Source files of the standard library's modules and packages, in order of their names."""
    for name in sorted(sys.stdlib_module_names - SKIPPED_MODULES):
        for path in [*folder.glob(f"{name}.py"), *sorted((folder / name).rglob("*.py"))]:
            if SKIPPED_FOLDERS.isdisjoint(path.relative_to(folder).parts):
                yield path


def read_docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a source file in order of appearance; none if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node, clean=False)):
            yield tidy(docstring)
        children = [*ast.iter_child_nodes(node)]
        stack += [child for child in reversed(children) if isinstance(child, STATEMENTS)]


def tidy(text: str) -> str:
    """Without common indentation, tabs, blanks at line ends, and lone surrogates."""
    lines = inspect.cleandoc(text).encode("utf-8", "ignore").decode("utf-8").splitlines()
    return "\n".join(line.rstrip() for line in lines)
