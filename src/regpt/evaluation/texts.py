"""What a person may name as the text to score: a named text, files, prepared shards, or a folder.

| given | scored |
|---|---|
| `shakespeare`, `pydocs`, UTF-8 files | their text, end-of-text between two documents |
| a `.jsonl` file | the field `text` of each line, a document each |
| a folder that `regpt prepare` made, or of anyone's shards | its validation split |
| a folder of `.txt` files | the files in order of their names |
| a `.bin` or `.npy` file | its tokens |
"""

from collections.abc import Sequence
from pathlib import Path

from regpt.core.data import ArrayDataset, Dataset
from regpt.core.tokenizer import get_tokenizer
from regpt.datasets.corpora import load_corpus
from regpt.datasets.corpus import Corpus, Say, silent
from regpt.datasets.manifest import NAME as MANIFEST
from regpt.datasets.shards import SUFFIXES, ShardDataset
from regpt.system.errors import UserError
from regpt.system.json_text import field, read_objects


def open_texts(
    sources: Sequence[str], *, validation_fraction: float = 0.0, say: Say = silent
) -> Dataset:
    """The tokens of what was named; with a fraction, the last part of the characters only.

    `say` is told how far a large text is.
    """
    paths = [Path(source) for source in sources]
    if len(paths) == 1 and (paths[0].suffix in SUFFIXES or paths[0].is_dir()):
        tokens = open_tokens(paths[0])
        if tokens is not None:
            if validation_fraction:
                raise UserError(
                    f"{paths[0]} is divided already: leave --validation-fraction out, its "
                    "validation split is what is scored"
                )
            return tokens
    corpus = open_corpus(sources, say)
    if validation_fraction:
        _, corpus = corpus.split(validation_fraction)
    return ArrayDataset(corpus.tokens(get_tokenizer(), say=say))


def open_tokens(path: Path) -> Dataset | None:
    """A file or folder of tokens; None for a folder of something else."""
    if path.is_file():
        return ShardDataset.from_files([path])
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else [MANIFEST]
    if MANIFEST in names or any(Path(name).suffix in SUFFIXES for name in names):
        return ShardDataset.open(path, split="val")
    return None


def open_corpus(sources: Sequence[str], say: Say) -> Corpus:
    """The documents of named texts, files, or a folder of texts."""
    if len(sources) == 1 and Path(sources[0]).is_dir():
        folder = Path(sources[0])
        files = sorted(path for path in folder.rglob("*.txt") if path.is_file())
        if not files:
            raise UserError(
                f"{folder} has no documents: neither shards of tokens nor .txt files are in it"
            )
        return load_corpus(files, say=say)
    lines = [Path(source) for source in sources if source.endswith(".jsonl")]
    if not lines:
        return load_corpus(sources, say=say)
    if len(lines) < len(sources):
        raise UserError("--data takes .jsonl files or texts, not both: evaluate them one by one")
    documents = [
        field(value, "text", str, where=f"{path} line {number}")
        for path in lines
        for number, value in read_objects(path)
    ]
    name = ", ".join(path.name for path in lines)
    if not any(documents):
        raise UserError(f"{name} has no documents: the field 'text' of every line is empty")
    return Corpus(name, tuple(filter(None, documents)))
