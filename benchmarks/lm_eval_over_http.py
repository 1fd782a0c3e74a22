"""EleutherAI's lm-eval over HTTP against `regpt evaluate`: are the log-likelihoods the same?

    python benchmarks/lm_eval_over_http.py MODEL HELLASWAG.jsonl [--limit 50]

Starts `regpt serve MODEL`, lets lm-eval score the examples through `local-completions` (its own
texts, tokens and rules), scores them with `regpt evaluate`, and compares every ending. Needs
`pip install 'lm_eval[api]'`; nothing is asked of the hub. Exit code 1 if an ending differs by more
than 1e-4 of its log-likelihood.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent.parent / "examples" / "lm_eval"
BOUND = 1e-4
START_SECONDS = 120


@contextlib.contextmanager
def served(model: str) -> Iterator[str]:
    """`regpt serve MODEL` while it runs; its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    port = address.rpartition(":")[2]
    server = subprocess.Popen([sys.executable, "-m", "regpt", "serve", model, "--port", port])
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > end:
                    raise SystemExit("the server did not start") from None
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def theirs(model: str, examples: Path, limit: int, folder: Path) -> list[list[float]]:
    """lm-eval's log-likelihoods of each example's endings."""
    (folder / "hellaswag_val.jsonl").symlink_to(examples.resolve())
    with served(model) as address:
        with urllib.request.urlopen(f"{address}/v1/models") as listed:
            name = json.load(listed)["data"][0]["id"]
        length = json.loads((Path(model) / "config.json").read_text())["n_positions"]
        arguments = f"model={name},base_url={address}/v1/completions,tokenizer_backend=remote"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
        command += ["--model_args", f"{arguments},max_length={length},num_concurrent=4"]
        command += ["--tasks", "hellaswag_local", "--include_path", str(TASKS.resolve())]
        command += ["--limit", str(limit), "--log_samples", "--output_path", "out"]
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        subprocess.run(command, cwd=folder, env=offline, check=True)
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    rows = map(json.loads, samples.read_text().splitlines())
    ordered = sorted(rows, key=lambda row: row["doc_id"])
    return [[float(ending[0]) for ending in row["filtered_resps"]] for row in ordered]


def ours(model: str, examples: Path, limit: int, folder: Path) -> list[list[float]]:
    """`regpt evaluate`'s, in float32."""
    command = [sys.executable, "-m", "regpt", "evaluate", model, "--hellaswag", str(examples)]
    command += ["--scoring", "harness", "--dtype", "fp32", "--limit", str(limit)]
    subprocess.run([*command, "--details", str(folder / "details")], check=True)
    lines = (folder / "details" / "hellaswag-harness.jsonl").read_text().splitlines()
    return [[-nll for nll in json.loads(line)["nll"]] for line in lines]


def main() -> None:
    """Compare, and say the worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", help="a run's or model's directory")
    parser.add_argument("examples", type=Path, help="HellaSwag as JSON lines")
    parser.add_argument("--limit", type=int, default=50)
    options = parser.parse_args()
    if importlib.util.find_spec("lm_eval") is None:
        raise SystemExit("lm-eval is not installed: pip install 'lm_eval[api]'")
    with tempfile.TemporaryDirectory() as folder:
        found = theirs(options.model, options.examples, options.limit, Path(folder))
        expected = ours(options.model, options.examples, options.limit, Path(folder))
    pairs = [pair for rows in zip(found, expected, strict=True) for pair in zip(*rows, strict=True)]
    worst = max(abs(one - other) / abs(other) for one, other in pairs)
    result: dict[str, Any] = {"examples": len(found), "endings": len(pairs), "worst": worst}
    print(f"{len(pairs)} endings of {len(found)} examples, worst relative difference {worst:.1e}")
    print(json.dumps({"benchmark": "lm-eval over HTTP"} | result))
    raise SystemExit(int(worst > BOUND))


if __name__ == "__main__":
    main()
