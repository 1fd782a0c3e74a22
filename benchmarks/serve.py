"""The completion server beside others: throughput, first token, pauses; a soak; many connections.

    python benchmarks/serve.py throughput [--dtype fp32] [--streams 16] [--tokens 128]
    python benchmarks/serve.py pause [--dtype fp32] [--streams 8] [--prompt 900]
    python benchmarks/serve.py soak [--seconds 600]
    python benchmarks/serve.py connections [--count 10000]

The 124M model has random weights. Others are asked where they are installed: `llama-server` or
llama-cpp-python's server (float32 and int8 as GGUF's f32 and q8_0), and `transformers serve`. Each
prints a table and, last, one JSON object. Loads are bounded, on loopback, and end by themselves.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import torch

from regpt import GPT, GPTConfig

START_SECONDS = 180
TEXT = "the old dog came over a small water under other light while it had green long night"
WORDS = TEXT.split(" ")
NO_END = {"50256": -100}


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def commands(directory: Path, dtype: str, rows: int) -> Iterator[tuple[str, str, list[str], int]]:
    """The servers that are installed: name, model, command, port; a line for each that is not."""
    port = free_port()
    ours = [sys.executable, "-m", "regpt", "serve", str(directory), "--port", str(port)]
    yield "regpt", directory.name, [*ours, "--dtype", dtype, "--rows", str(rows)], port
    port = free_port()
    kind = {"fp32": "f32", "int8": "q8_0"}.get(dtype)
    gguf = directory.parent / f"model-{kind}.gguf"
    options = ["--port", str(port), "--host", "127.0.0.1"]
    threads = str(torch.get_num_threads())
    if kind is None or not gguf.exists():
        print(f"llama-server: no GGUF of {dtype} here: left out")
    elif program := shutil.which("llama-server"):
        size = ["-c", str(1024 * rows), "-np", str(rows), "-t", threads]
        yield "llama-server", "model", [program, "-m", str(gguf), *size, *options], port
    elif importlib.util.find_spec("llama_cpp"):
        module = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf)]
        size = ["--n_ctx", "1024", "--n_threads", threads]
        yield "llama-cpp-python", str(gguf), [*module, *size, *options], port
    else:
        print("llama-server and llama-cpp-python: not installed: left out")
    port = free_port()
    program = shutil.which("transformers")
    if dtype == "fp32" and program and importlib.util.find_spec("fastapi"):
        hub = directory.parent / "hub"
        hub.mkdir(exist_ok=True)
        os.environ["HF_HUB_CACHE"] = str(hub)  # which it lists
        serve = [program, "serve", str(directory), "--host", "127.0.0.1", "--port"]
        yield "transformers", str(directory), [*serve, str(port)], port
        port = free_port()
        batching = [*serve, str(port), "--continuous-batching"]
        yield "transformers, batching", str(directory), batching, port
    else:
        print(
            "transformers serve: not installed (it wants fastapi and accelerate), "
            "or not in this dtype: left out"
        )


def save_model(folder: Path, dtype: str) -> Path:
    """The random 124M model in Hugging Face layout, and as GGUF where that can be written."""
    torch.manual_seed(0)
    directory = folder / "random-124m"
    GPT(GPTConfig()).save_pretrained(directory)
    kind = {"fp32": "f32", "int8": "q8_0"}.get(dtype)
    if kind and importlib.util.find_spec("gguf"):
        command = [sys.executable, "-m", "regpt", "export", str(directory)]
        subprocess.run([*command, str(folder / f"model-{kind}.gguf"), "--gguf", kind], check=True)
    return directory


@contextlib.asynccontextmanager
async def running(command: list[str], port: int) -> AsyncIterator[tuple[openai.AsyncOpenAI, int]]:
    """A server's process while it answers, and a client of it."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600
    )
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                await client.models.list()
                break
            except openai.APIError:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"it did not start: {' '.join(command)}") from None
                await asyncio.sleep(0.5)
        yield client, process.pid
    finally:
        await client.close()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


async def stream(client: openai.AsyncOpenAI, model: str, **fields: Any) -> list[float]:
    """When each piece of a streamed completion came, after the request's own time."""
    times = [time.perf_counter()]
    known: dict[str, Any] = {"temperature": 1.0, "logit_bias": NO_END}
    pieces = await client.completions.create(model=model, stream=True, **(known | fields))
    async for piece in pieces:
        if piece.choices and piece.choices[0].text:
            times.append(time.perf_counter())
    return times


def prompt_of(words: int, seed: int) -> str:
    """So many words, each a token."""
    return "the " + " ".join(random.Random(seed).choices(WORDS, k=words - 1))


async def throughput(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Tokens a second of several streams at once, and when the first came."""
    figures: dict[str, Any] = {}
    directory = save_model(folder, options.dtype)
    print(f"{'':<18} tokens/s   first token, median   last")
    for name, model, command, port in commands(directory, options.dtype, options.streams):
        async with running(command, port) as (client, _):
            await stream(client, model, prompt="the", max_tokens=4)
            best: dict[str, float] = {}
            for round_ in range(options.rounds):
                began = time.perf_counter()
                done = await asyncio.gather(
                    *(
                        stream(client, model, prompt=prompt_of(16, 100 * round_ + number),
                               max_tokens=options.tokens, seed=number)
                        for number in range(options.streams)
                    )
                )  # fmt: skip
                seconds = time.perf_counter() - began
                firsts = [times[1] - times[0] for times in done if len(times) > 1]
                rate = options.streams * options.tokens / seconds
                if rate > best.get("tokens_per_second", 0):
                    best = {"tokens_per_second": rate, "first_median": statistics.median(firsts),
                            "first_last": max(firsts)}  # fmt: skip
        figures[name] = best
        print(f"{name:<18} {best['tokens_per_second']:8.1f}   {best['first_median']:18.2f} s"
              f"   {best['first_last']:.2f} s")  # fmt: skip
    return figures


async def pause(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The longest pause of running streams while a long prompt is read, against their median."""
    figures: dict[str, Any] = {}
    directory = save_model(folder, options.dtype)
    print(f"{'':<18} median pause   longest   ratio   first token of the long one")
    for name, model, command, port in commands(directory, options.dtype, options.streams + 1):
        async with running(command, port) as (client, _):
            tasks = [
                asyncio.create_task(
                    stream(client, model, prompt=prompt_of(16, number), max_tokens=options.tokens)
                )
                for number in range(options.streams)
            ]
            await asyncio.sleep(options.after)
            long = await stream(client, model, prompt=prompt_of(options.prompt, 99), max_tokens=4)
            done = await asyncio.gather(*tasks)
        gaps = [b - a for times in done for a, b in pairwise(times[1:])]
        middle, longest = statistics.median(gaps), max(gaps)
        figures[name] = {"median": middle, "longest": longest, "first_of_long": long[1] - long[0]}
        print(f"{name:<18} {1e3 * middle:9.1f} ms {1e3 * longest:7.1f} ms {longest / middle:6.1f}"
              f"   {long[1] - long[0]:.2f} s")  # fmt: skip
    return figures


def memory_of(pid: int) -> float:
    """Megabytes a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))


async def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A bounded mixed load for minutes, 5 % malformed, 10 % cancelled: memory and rows after it."""
    directory = save_model(folder, options.dtype)
    name, model, command, port = next(commands(directory, options.dtype, 8))
    ends = dict.fromkeys(("good", "malformed", "cancelled", "unexpected"), 0)
    memory: list[tuple[float, float]] = []
    async with running(command, port) as (client, pid):
        began = time.monotonic()

        async def one(chance: random.Random) -> None:
            fields: dict[str, Any] = {
                "prompt": prompt_of(chance.randrange(1, 200), chance.random())
            }  # type: ignore
            fields |= {"max_tokens": chance.randrange(1, 40), "n": chance.choice((1, 1, 1, 3))}
            fields |= {"logprobs": chance.choice((None, 2)), "echo": chance.random() < 0.2}
            kind = chance.random()
            try:
                if kind < 0.05:
                    await client.completions.create(model=model, **(fields | {"n": 0}))
                elif kind < 0.15:
                    work = client.completions.create(model=model, **fields)
                    await asyncio.wait_for(work, chance.random())
                else:
                    await client.completions.create(model=model, **fields)
                ends["good"] += 1
            except openai.BadRequestError:
                ends["malformed" if kind < 0.05 else "unexpected"] += 1
            except TimeoutError:
                ends["cancelled"] += 1
            except openai.APIError:
                ends["unexpected"] += 1

        async def worker(seed: int) -> None:
            chance = random.Random(seed)
            while time.monotonic() - began < options.seconds:
                await one(chance)

        async def watch() -> None:
            while time.monotonic() - began < options.seconds:
                memory.append((time.monotonic() - began, memory_of(pid)))
                await asyncio.sleep(min(5, options.seconds / 10))

        await asyncio.gather(watch(), *(worker(seed) for seed in range(12)))
        await asyncio.sleep(2)
        page = await client.get("/../metrics", cast_to=str)
    busy = next(line for line in page.splitlines() if line.startswith("regpt_rows_busy"))
    settled = [size for at, size in memory if at >= min(60, options.seconds / 4)]
    growth = max(settled) / settled[0] - 1
    print(f"{name}: {ends}; {busy}; memory {settled[0]:.0f} MB, at most {100 * growth:+.1f} %")
    return {"ends": ends, "rows_busy": int(busy.split()[1]), "memory_growth": growth}


async def connections(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Connections opened and left, and how long a healthy client waits meanwhile."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    count = min(options.count, most - 200)
    directory = save_model(folder, options.dtype)
    name, model, command, port = next(commands(directory, options.dtype, 8))
    waits: list[float] = []
    async with running(command, port) as (client, _):
        client = client.with_options(max_retries=2)  # its own idle connections are closed, too
        with contextlib.ExitStack() as stack:
            for number in range(count):
                opened = socket.create_connection(("127.0.0.1", port), timeout=30)
                stack.enter_context(opened)
                if number % (count // 10) == 0:
                    times = await stream(client, model, prompt="the", max_tokens=2)
                    waits.append(times[1] - times[0])
    print(f"{name}: {count} connections; a healthy client waits {max(waits):.2f} s at most")
    return {"connections": count, "first_token_at_most": max(waits), "limit": limit}


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("throughput", "pause", "soak", "connections"))
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16", "int8"))
    parser.add_argument("--streams", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=900)
    parser.add_argument("--after", type=float, default=3.0, help="seconds before the long prompt")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    options.streams = options.streams or (16 if options.what == "throughput" else 8)
    options.tokens = options.tokens or (128 if options.what == "throughput" else 300)
    chosen = {"throughput": throughput, "pause": pause, "soak": soak, "connections": connections}
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(chosen[options.what](options, Path(folder)))
    settings = {name: value for name, value in vars(options).items() if name != "what"}
    print(json.dumps({"benchmark": f"serve {options.what}", **settings, "cpus": os.cpu_count(),
                      "figures": figures}))  # fmt: skip


if __name__ == "__main__":
    main()
