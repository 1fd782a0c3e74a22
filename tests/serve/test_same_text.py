"""One seed, one prompt, one text: in any company, order, cache; and the library's own."""

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from serving import CONFIG, Running, load, load_alone, serving, tiny

from forks import warm_python
from regpt.core.generate import complete
from regpt.core.model import GPTConfig
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import get_tokenizer
from regpt.serve.backend import Loaded

SMALL = GPTConfig(block_size=256, vocab_size=8192, n_layer=2, n_head=2, n_embd=32)
"""A vocabulary that is cheap to draw from, with room for our words."""
TEXT = "the old dog came over a small water under other light while it had green and long night"
WORDS = TEXT.split(" ")
LONG = f"{TEXT}. " * 4


def make_requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Mixed ones, many of which share the beginning of their prompts."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        words = WORDS[: chance.randrange(16)] + chance.choices(WORDS, k=chance.randrange(12))
        prompt = chance.choice(("the ", "the ", LONG)) + " ".join(words)
        body: dict[str, Any] = {"prompt": prompt, "seed": number % 7}
        body["max_tokens"] = chance.choice((0, 1, 3, 8, 20))
        body["stream"] = chance.random() < 0.5
        if chance.random() < 0.3:
            body |= {"n": chance.randrange(1, 5)}
        if chance.random() < 0.3:
            body |= {"prompt": [prompt, prompt + " and", "other"]}
        if chance.random() < 0.3:
            body |= {"logprobs": chance.randrange(4), "echo": chance.random() < 0.5}
        if chance.random() < 0.4:
            body |= {
                "top_k": chance.choice((1, 5, 50)),
                "temperature": chance.choice((0, 0.7, 1.2)),
            }
        if chance.random() < 0.2:
            body |= {"stop": ["e"], "frequency_penalty": 0.5, "logit_bias": {"262": 3}}
        made.append(body)
    return made


def choices_of(answer: bytes, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of an answer, a stream's put together."""
    if not body["stream"]:
        return json.loads(answer)["choices"]
    assert answer.endswith(b"data: [DONE]\n\n")
    found: dict[int, dict[str, Any]] = {}
    for line in answer.decode().split("\n\n")[:-2]:
        (piece,) = json.loads(line.removeprefix("data: "))["choices"]
        choice = found.setdefault(piece["index"], piece)
        if choice is not piece:
            choice["text"] += piece["text"]
            choice["finish_reason"] = piece["finish_reason"]
            if piece["logprobs"]:
                for name, values in piece["logprobs"].items():
                    choice["logprobs"][name] += values
    return [found[index] for index in sorted(found)]


def ask_all(
    running: Running, bodies: list[dict[str, Any]], *, together: int, cancels: set[int], seed: int
) -> dict[int, list[dict[str, Any]]]:
    """Ask in a random order, some at a time; those in `cancels` leave early."""
    chance = random.Random(seed)
    order = list(range(len(bodies)))
    chance.shuffle(order)
    pauses = {number: chance.random() * 0.01 for number in order}
    url = f"http://127.0.0.1:{running.port}/v1/completions"
    found: dict[int, list[dict[str, Any]]] = {}
    with httpx.Client(timeout=300) as client:

        def ask(number: int) -> None:
            time.sleep(pauses[number])
            with client.stream("POST", url, json=bodies[number]) as answer:
                assert answer.status_code == 200
                if number in cancels:
                    if bodies[number]["stream"]:
                        next(answer.iter_raw(), None)
                    return  # closes the connection
                found[number] = choices_of(answer.read(), bodies[number])

        with ThreadPoolExecutor(together) as pool:
            list(pool.map(ask, order))
    return found


def check_same(loaded: Callable[[], Loaded], count: int) -> None:
    bodies = make_requests(count, seed=1)
    cancels = set(random.Random(2).sample(range(count), count // 10))
    with serving(loaded()) as running:
        alone = ask_all(running, bodies, together=1, cancels=set(), seed=3)
        running.settle()
    with serving(loaded()) as running:
        for seed in (4, 5):
            crowd = ask_all(running, bodies, together=32, cancels=cancels, seed=seed)
            assert set(crowd) == set(range(count)) - cancels
            for number, choices in crowd.items():
                assert choices == alone[number], bodies[number]
        running.settle()
        assert running.engine.metrics.cached_tokens > 0


def test_200_requests_in_any_company() -> None:
    check_same(lambda: load(tiny(config=SMALL), rows=8), 200)


def test_without_the_kernel_too() -> None:
    check_same(lambda: load_alone(tiny(config=SMALL), rows=4), 24)


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny().save_pretrained(path)
    return path


@pytest.mark.parametrize("fields", [{}, {"top_k": 40, "temperature": 0.8}, {"temperature": 0}])
def test_the_text_is_the_librarys(served: Running, fields: dict[str, Any]) -> None:
    tokenizer = get_tokenizer()
    prompt = "the old dog"
    start = tokenizer.encode(prompt)
    params = SamplingParams(
        **({"top_k": None} | fields),
        max_length=len(start) + 12,
        num_samples=3,
        seed=11,
        rng="portable",
    )
    expected = [tokenizer.decode(row) for row in complete(tiny(), start, params)]
    body = {"prompt": prompt, "max_tokens": 12, "n": 3, "seed": 11, "echo": True} | fields
    _, _, done = served.ask("/v1/completions", body)
    assert [choice["text"].strip("\n") for choice in done["choices"]] == [
        text.removesuffix("<|endoftext|>").strip("\n") for text in expected
    ]


def test_the_text_is_regpt_samples(served: Running, model_directory: Path) -> None:
    command = [warm_python(), "-m", "regpt", "sample", "the old", "--model", str(model_directory)]
    command += ["--rng", "portable", "--seed", "9", "--max-length", "30", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    body = {"prompt": "the old", "max_tokens": 28, "n": 5, "seed": 9, "echo": True, "top_k": 50}
    _, _, answer = served.ask("/v1/completions", body)
    assert [choice["text"] for choice in answer["choices"]] == [row["text"] for row in rows]


def test_the_fingerprint_is_the_models(served: Running) -> None:
    assert load().fingerprint == served.engine.loaded.fingerprint
    assert load(tiny(seed=1)).fingerprint != served.engine.loaded.fingerprint


def test_another_model_comes_in_between_requests() -> None:
    """`--follow`: no text is begun with one model and ended with another."""
    bodies: list[dict[str, Any]] = [
        {"prompt": "the", "max_tokens": 20, "n": 5, "seed": seed, "stream": False}
        for seed in range(4)
    ]
    models = [load(tiny(seed=seed, config=SMALL), rows=3) for seed in (0, 1)]
    expected = []
    for model in models:
        with serving(model) as running:
            expected.append(ask_all(running, bodies, together=1, cancels=set(), seed=0))
    with serving(models[0]) as running:
        timer = threading.Timer(0.2, running.engine.replace, [models[1]])
        timer.start()
        found = ask_all(running, bodies * 5, together=6, cancels=set(), seed=1)
        timer.join()
        for number, choices in found.items():
            assert choices in (expected[0][number % 4], expected[1][number % 4])
        assert ask_all(running, bodies, together=4, cancels=set(), seed=2) == expected[1]
        assert running.engine.loaded is models[1]


def test_the_positions_are_all_used(served: Running) -> None:
    body = {
        "prompt": "a",
        "max_tokens": CONFIG.block_size - 1,
        "seed": 1,
        "logit_bias": {"50256": -100},
    }
    status, _, done = served.ask("/v1/completions", body)
    assert status == 200
    assert done["usage"]["total_tokens"] == CONFIG.block_size
