"""Speed of `regpt prepare`: two processes against one, and one against tiktoken alone.

    python benchmarks/prepare.py --text tinyshakespeare.txt
    python benchmarks/prepare.py --text tinyshakespeare.txt --gigabyte

The input is made from --text and the documents of `pydocs`: each round tells every document once,
its lines in another order, until the file has the size asked for. The three run by turns, as
programs of their own, start included: `regpt prepare --processes 1`, `--processes 2`, and tiktoken
encoding the documents one by one, which are in memory already and whose tokens are thrown away.
The shards of all runs must be the same bytes. `--gigabyte` is the memory row: one .txt and one
.jsonl of a gigabyte, two processes, looked at ten times a second (which takes a core's time, so the
timed runs are not): the most any process held resident, and the most all of them held together
(proportional set size, which counts a shared page once). Prints tables and one JSON line.
"""

import argparse
import hashlib
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from regpt.datasets.corpora import load_corpus

ENCODE = """
import sys, time, json
from regpt.core.tokenizer import get_tokenizer
texts = [json.loads(line)["text"] for line in open(sys.argv[1], encoding="utf-8")]
tokenizer = get_tokenizer()
clock = time.perf_counter()
count = sum(len(tokenizer._encoding.encode_ordinary(text)) for text in texts)
print(time.perf_counter() - clock, count)
"""


def make_documents(texts: list[str], size: int) -> Iterator[str]:
    """Documents of about `size` bytes together: every text again and again, its lines shuffled."""
    documents = [
        [line + "\n" for line in document.split("\n")]
        for text in texts
        for document in load_corpus([text]).documents
    ]
    order, written = random.Random(0), 0
    while True:
        for lines in documents:
            order.shuffle(lines)
            text = "".join(lines)
            yield text
            written += len(text.encode())
            if written >= size:
                return


def write_input(path: Path, texts: list[str], size: int) -> None:
    """One file of documents, .jsonl or .txt."""
    with path.open("w", encoding="utf-8") as file:
        for text in make_documents(texts, size):
            file.write(json.dumps({"text": text}) + "\n" if path.suffix == ".jsonl" else text)


def tree(root: int) -> list[int]:
    """A process and its descendants."""
    found, waiting = [], [root]
    while waiting:
        process = waiting.pop()
        found.append(process)
        try:
            children = Path(f"/proc/{process}/task/{process}/children").read_text()
        except OSError:
            continue
        waiting += map(int, children.split())
    return found


def memory_of(process: int) -> tuple[int, int]:
    """Resident and proportional bytes of a process; zeros if it has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0, 0
    fields = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if "kB" in line}
    return int(fields["Rss"]) * 1024, int(fields["Pss"]) * 1024


def watch(command: list[str]) -> dict[str, float]:
    """Run a command; its seconds, and the most memory of one of its processes and of all."""
    clock = time.perf_counter()
    resident = together = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            sizes = [memory_of(number) for number in tree(process.pid)]
            resident = max(resident, *(size[0] for size in sizes))
            together = max(together, sum(size[1] for size in sizes))
            time.sleep(0.1)
        seconds = time.perf_counter() - clock
    assert process.returncode == 0, command
    return {"seconds": seconds, "one": resident, "all": together}


def prepare(source: Path, out: Path, processes: int) -> list[str]:
    """The command of one run of `regpt prepare`, into a fresh directory."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "regpt", "prepare", str(source), "--out", str(out)]
    return [*command, "--processes", str(processes)]


def digest(folder: Path) -> str:
    """sha256 over everything in a folder."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()


def processor_seconds() -> float:
    """What the programs run so far took of the processors, all their processes together."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compare(source: Path, folder: Path, rounds: int) -> dict[str, object]:
    """One process, two, and tiktoken, by turns."""
    size = source.stat().st_size
    seconds: dict[str, list[float]] = {"one process": [], "two processes": [], "tiktoken": []}
    work: dict[str, list[float]] = {"one process": [], "two processes": []}
    for _ in range(rounds):
        digests = set()
        for processes, name in ((1, "one process"), (2, "two processes")):
            command = prepare(source, folder / "out", processes)
            clock, before = time.perf_counter(), processor_seconds()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - clock)
            work[name].append(processor_seconds() - before)
            digests.add(digest(folder / "out"))
        assert len(digests) == 1, "the output depends on the number of processes"
        command = [sys.executable, "-c", ENCODE, str(source)]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        seconds["tiktoken"].append(float(output.split()[0]))
    for name, values in seconds.items():
        shown = " ".join(f"{value:7.2f}" for value in values)
        speed = size / statistics.median(values) / 1e6
        sys.stdout.write(f"{name:<14} {speed:6.2f} MB/s   seconds {shown}\n")
    one, two, alone = seconds["one process"], seconds["two processes"], seconds["tiktoken"]
    return {
        "input_bytes": size,
        "seconds": {
            name: [round(value, 2) for value in values] for name, values in seconds.items()
        },
        "processor_seconds": {name: [round(v, 2) for v in values] for name, values in work.items()},
        "two_over_one": [round(a / b, 3) for a, b in zip(one, two, strict=True)],
        "one_over_tiktoken": [round(a / b, 3) for a, b in zip(alone, one, strict=True)],
    }


def gigabyte(texts: list[str], folder: Path, size: int) -> dict[str, object]:
    """The memory that a large input takes, as one text and as lines."""
    figures = {}
    for name in ("large.txt", "large.jsonl"):
        write_input(folder / name, texts, size)
        result = watch(prepare(folder / name, folder / "out", 2))
        figures[name] = {
            "bytes": (folder / name).stat().st_size,
            "seconds": round(result["seconds"], 1),
            "megabytes_in_one": round(result["one"] / 1e6),
            "megabytes_in_all": round(result["all"] / 1e6),
        }
        sys.stdout.write(f"{name:<12} {figures[name]}\n")
        (folder / name).unlink()
    return figures


def main() -> None:
    """Make the input, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="append", default=[], help="a text beside pydocs")
    parser.add_argument("--megabytes", type=int, default=None, help="default 500, or 1000")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--gigabyte", action="store_true", help="the memory row only")
    parser.add_argument("--folder", default=None, help="for the input and the shards")
    options = parser.parse_args()
    texts = [*options.text, "pydocs"]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.gigabyte:
            figures = gigabyte(texts, folder, (options.megabytes or 1000) * 10**6)
        else:
            source = folder / "input.jsonl"
            write_input(source, texts, (options.megabytes or 500) * 10**6)
            figures = compare(source, folder, options.rounds)
    sys.stdout.write(json.dumps({"benchmark": "prepare"} | figures) + "\n")


if __name__ == "__main__":
    main()
