"""Speed of `regpt prepare`: two processes against one, and one against tiktoken alone.

    python benchmarks/prepare.py --text tinyshakespeare.txt
    python benchmarks/prepare.py --text tinyshakespeare.txt --gigabyte

The input is made from --text and the documents of `pydocs`: each round tells every document once,
its lines in another order, until the file has the size asked for. Three take turns: `regpt prepare
--processes 1` and `--processes 2` as programs of their own, start included, and tiktoken encoding
the documents one by one, which are in memory already and whose tokens are thrown away. The shards
of both must be the same bytes. `--gigabyte` is the memory row: one .txt and one .jsonl of a
gigabyte, two processes, looked at ten times a second (which takes a core's time, so the timed runs
are not): the most any process held resident, and the most all of them held together (proportional
set size, which counts a shared page once). Prints tables and one JSON line.
"""

import hashlib
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from regpt.bench.hardware_limits import Machine
from regpt.bench.harness import Benchmark, Job
from regpt.bench.results import Column, Row, against, usual_columns
from regpt.bench.scripts import run_script, script_options
from regpt.bench.worker import System
from regpt.datasets.corpora import load_corpus


def load_tiktoken(source: str) -> Callable[[], None]:
    """tiktoken alone."""
    from regpt.core.tokenizer import get_tokenizer

    with open(source, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    encode = get_tokenizer()._encoding.encode_ordinary

    def call() -> None:
        for text in texts:
            encode(text)

    return call


def load_prepare(source: str, out: str, processes: int) -> Callable[[], dict[str, float]]:
    """The program as a whole; tells the processor time of all its processes together."""

    def call() -> dict[str, float]:
        before = processor_seconds()
        command = prepare(Path(source), Path(out), processes)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return {"processor_seconds": round(processor_seconds() - before, 2)}

    return call


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


def columns_for(size: int) -> Callable[[Machine, Sequence[Row]], list[Column]]:
    """MB/s of the input, processor seconds, and how many times as fast."""

    def columns(machine: Machine, rows: Sequence[Row]) -> list[Column]:
        usual = usual_columns(memory=False)
        speed = Column(heading="MB/s", cell=lambda row: f"{size / row.seconds / 1e6:.2f}")
        work = Column(
            heading="processor seconds",
            cell=lambda row: str(row.facts.get("processor_seconds", "")),
        )
        baselines = [against(rows, name, "") for name in ("one process", "tiktoken")]
        return [*usual, speed, work, *baselines]

    return columns


def compare(bench: Benchmark, source: Path, folder: Path) -> None:
    """One process, two, and tiktoken, in interleaved rounds."""
    systems = [System(name="tiktoken", load=f"{__file__}:load_tiktoken",
                      settings={"source": str(source)})]  # fmt: skip
    outs = []
    for processes, name in ((1, "one process"), (2, "two processes")):
        outs.append(folder / name)
        settings = {"source": str(source), "out": str(outs[-1]), "processes": processes}
        systems.append(System(name=name, load=f"{__file__}:load_prepare", settings=settings))
    job = Job(name=f"{source.stat().st_size / 1e6:.0f} MB")
    bench.measure(systems, job)
    assert digest(outs[0]) == digest(outs[1]), "the output depends on the number of processes"


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
    parser = script_options(__doc__, seconds=3600.0, rounds=2)
    parser.add_argument("--text", action="append", default=[], help="a text beside pydocs")
    parser.add_argument("--megabytes", type=int, default=None, help="default 500, or 1000")
    parser.add_argument("--gigabyte", action="store_true", help="the memory row only")
    parser.add_argument("--folder", default=None, help="for the input and the shards")
    options = parser.parse_args()
    texts = [*options.text, "pydocs"]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.gigabyte:
            figures = gigabyte(texts, folder, (options.megabytes or 1000) * 10**6)
            sys.stdout.write(json.dumps({"benchmark": "prepare"} | figures) + "\n")
            return
        source = folder / "input.jsonl"
        write_input(source, texts, (options.megabytes or 500) * 10**6)
        bench = Benchmark(
            name="prepare", seconds=options.seconds, rounds=options.rounds,
            columns=columns_for(source.stat().st_size), threads=options.threads,
            out=options.out, json=True,
        )  # fmt: skip
        with bench.running():
            compare(bench, source, folder)


if __name__ == "__main__":
    run_script(main)
