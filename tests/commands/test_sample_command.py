"""`regpt sample`: streams, stop strings, batches that survive a kill."""

import inspect
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from test_model import sharpen

from regpt import GPT, GPTConfig, SamplingParams
from regpt.cli import main
from regpt.commands.sample import sample
from regpt.core.kv_cache import PlainDecoder
from regpt.fast.decoding.cuda_graphs import GraphDecoder


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("sample") / "model"
    sharpen(GPT(GPTConfig(block_size=40, n_layer=2, n_head=1, n_embd=16)), 0.4).save_pretrained(
        path
    )
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main(["sample", *map(str, arguments)])
    return capsys.readouterr().out


def test_unasked_it_samples_as_the_library_does() -> None:
    flags = {name: flag.default for name, flag in inspect.signature(sample).parameters.items()}
    for name, value in asdict(SamplingParams()).items():
        assert name in ("rng", "stop_at_eot") or flags[name] == value, name


def test_a_stream_is_the_first_sample(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["Hello there", "--model", directory, "--device", "cpu", "--seed", 5]
    whole = printed(capsys, *arguments, "--num-samples", 1)
    assert printed(capsys, *arguments, "--stream") == whole.removeprefix("> ")


@pytest.mark.parametrize(
    "flags",
    [
        ("--engine", "plain"),
        ("--engine", "fast"),
        ("--speculate", "off"),
        ("--speculate", "lookup"),
    ],
)
def test_engines_and_guesses_change_no_text(
    directory: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, str]
) -> None:
    arguments = ["Hello there", "--model", directory, "--device", "cpu"]
    expected = printed(capsys, *arguments)
    assert printed(capsys, *arguments, *flags) == expected


def test_a_stop_string_ends_the_text(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["Hello there", "--model", directory, "--device", "cpu", "--json"]
    lines = [json.loads(line) for line in printed(capsys, *arguments).splitlines()]
    text = lines[0]["text"]
    middle = text[len("Hello there") + 12 : len("Hello there") + 15]
    stopped = json.loads(printed(capsys, *arguments, "--stop", middle).splitlines()[0])
    assert stopped["text"] == text[: text.index(middle, len("Hello there"))]
    assert lines[0]["tokens"][: len(stopped["tokens"])] == stopped["tokens"]
    assert len(stopped["tokens"]) < len(lines[0]["tokens"])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": "word " * (n % 7)}) for n in range(20)]
    path.write_text("\n".join(lines) + "\n")
    return path


def batch(directory: Path, prompts: Path, *more: object) -> list[dict]:
    arguments = ["sample", "--model", directory, "--device", "cpu", "--max-length", 16]
    main([str(word) for word in [*arguments, "--batch", prompts, *more]])
    out = Path(str(more[-1])) if "--output" in more else prompts.with_suffix(".out.jsonl")
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_batch_does_every_line_once(directory: Path, prompts: Path) -> None:
    entries = batch(directory, prompts)
    assert sorted(entry["line"] for entry in entries) == list(range(1, 21))
    for entry in entries:
        assert entry["prompt"] == "word " * ((entry["line"] - 1) % 7)
        assert entry["text"].startswith(entry["prompt"])
        assert len(entry["tokens"]) <= 16
    same = {entry["text"] for entry in entries if entry["prompt"] == "word "}
    assert len(same) == 3, "equal prompts on different lines are different samples"


@pytest.mark.parametrize("kept", [0, 9, 20])
def test_a_killed_batch_goes_on(directory: Path, prompts: Path, kept: int) -> None:
    whole = {entry["line"]: entry for entry in batch(directory, prompts)}
    out = prompts.with_suffix(".out.jsonl")
    lines = out.read_text().splitlines(keepends=True)
    half = lines[kept][:25] if kept < 20 else ""
    out.write_text("".join(lines[:kept]) + half)
    entries = batch(directory, prompts)
    assert len(entries) == 20
    assert {entry["line"]: entry for entry in entries} == whole


@pytest.mark.parametrize("how", ["same", "spelled", "soft", "hard", "default"])
def test_the_prompts_are_not_overwritten(
    directory: Path, prompts: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    before = prompts.read_bytes()
    link = prompts.with_name("link.jsonl")
    if how == "soft":
        link.symlink_to(prompts)
    elif how == "hard":
        link.hardlink_to(prompts)
    elif how == "default":
        prompts.with_suffix(".out.jsonl").symlink_to(prompts)
    spelled = prompts.parent / ".." / prompts.parent.name / prompts.name
    output = {"same": prompts, "spelled": spelled}.get(how, link)
    there = sorted(prompts.parent.iterdir())
    with pytest.raises(SystemExit) as stop:
        batch(directory, prompts, *(() if how == "default" else ("--output", output)))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--output would overwrite the prompts: name another file" in error
    assert error.count("\n") == 1
    assert sorted(prompts.parent.iterdir()) == there
    assert prompts.read_bytes() == before


def test_a_batch_goes_through_the_decoder_that_was_chosen(
    directory: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = batch(directory, prompts, "--engine", "plain", "--output", prompts.parent / "plain")
    steps = []

    class Graph(GraphDecoder):
        def step(self, tokens: torch.Tensor) -> torch.Tensor:
            steps.append(len(tokens))
            return super().step(tokens)

    def as_on_cuda(model: GPT, **other: object) -> tuple[PlainDecoder, None]:
        return Graph(model, dtype=torch.float32), None

    monkeypatch.setattr("regpt.commands.batch.choose_decoder", as_on_cuda)
    assert batch(directory, prompts) == plain
    assert max(steps) == 8


MADE = [
    (("--seed", 7), "seed 42, not 7"),
    (("--top-k", 3, "--temperature", 0.5), "top_k 50, not 3; temperature 1.0, not 0.5"),
    (("--stop", "word"), "stop [], not ['word']"),
    (("--dtype", "bf16", "--engine", "plain"), "dtype 'fp32', not 'bf16'"),
    (("--model", "{other}"), "another model"),
]


@pytest.mark.parametrize(("flags", "what"), MADE, ids=[what for _, what in MADE])
def test_lines_made_otherwise_are_not_taken(
    directory: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[object, ...],
    what: str,
) -> None:
    sharpen(GPT(GPTConfig(block_size=40, n_layer=1, n_head=1, n_embd=16)), 0.4).save_pretrained(
        tmp_path / "other"
    )
    batch(directory, prompts)
    out = prompts.with_suffix(".out.jsonl")
    before = out.read_bytes()
    with pytest.raises(SystemExit) as stop:
        batch(directory, prompts, *(str(flag).format(other=tmp_path / "other") for flag in flags))
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"was made with {what}: go on as it was made, or name another --output" in error
    assert out.read_bytes() == before
    out.unlink()
    batch(directory, prompts)  # once it is moved away, anything goes
    assert batch(directory, prompts) == [json.loads(line) for line in before.splitlines()]


def test_prompts_that_changed_are_named_and_more_of_them_done(
    directory: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = batch(directory, prompts)
    text = prompts.read_text()
    prompts.write_text(text + json.dumps({"prompt": "one more"}) + "\n")
    assert batch(directory, prompts)[:20] == first
    assert "21 lines, 20 of them done before" in capsys.readouterr().out
    prompts.write_text(text.replace('"word "', '"other "'))
    before = prompts.with_suffix(".out.jsonl").read_bytes()
    with pytest.raises(SystemExit) as stop:
        batch(directory, prompts)
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "4 of the 21 lines done differ, line 2 was 'word ', is 'other '" in error
    assert prompts.with_suffix(".out.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", ['{"line": 1, "prompt": "word", "text": ""}\n', "my notes\n"])
def test_an_output_nobody_knows_is_left_alone(
    directory: Path, prompts: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    out = prompts.with_suffix(".out.jsonl")
    out.write_text(content)
    with pytest.raises(SystemExit) as stop:
        batch(directory, prompts)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "no prompts.out.jsonl.making.json says what it was made from" in error
    assert error.count("\n") == 1
    assert out.read_text() == content


def test_broken_lines_are_named_and_the_others_done(
    directory: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = prompts.read_text().splitlines()
    lines[4], lines[8] = "{broken", json.dumps({"prompt": "word " * 30})
    prompts.write_text("\n".join(lines))
    with pytest.raises(SystemExit) as stop:
        batch(directory, prompts)
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert 'line 5 is not an object with a string "prompt"' in error
    assert "line 9 has a prompt of 31 tokens, above 16" in error or "line 9 has" in error
    written = prompts.with_suffix(".out.jsonl").read_text().splitlines()
    assert len(written) == 18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "no-such-file.jsonl"], "cannot read no-such-file.jsonl"),
        (["--batch", "/dev/zero"], "cannot read /dev/zero (it is a device, not a file)"),
        (["--batch", "x.jsonl", "--rng", "hf"], "depend on its neighbours"),
        (["--stream", "--json"], "--stream prints one text"),
        (["--dtype", "int8", "--engine", "plain"], "fast engine only"),
    ],
)
def test_what_does_not_go_together(
    directory: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--model", str(directory), "--device", "cpu", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_empty_prompt_starts_from_end_of_text(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "", "--model", directory, "--device", "cpu", "--json")
    assert all(json.loads(line)["tokens"][0] == 50256 for line in out.splitlines())


def test_a_model_with_another_tokenizer_is_refused(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    words = json.loads((tmp_path / "vocab.json").read_text())
    words["Hello"], words["World"] = words["World"], words["Hello"]
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--model", str(tmp_path), "--device", "cpu"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "vocab.json" in error


def test_logprobs_are_the_models(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["Hello there", "--model", directory, "--device", "cpu", "--num-samples", 2]
    plain = [json.loads(line) for line in printed(capsys, *arguments, "--json").splitlines()]
    lines = printed(capsys, *arguments, "--json", "--logprobs", 3).splitlines()
    model = GPT.from_pretrained(directory)
    for expected, line in zip(plain, lines, strict=True):
        entry = json.loads(line)
        assert (entry["tokens"], entry["text"]) == (expected["tokens"], expected["text"])
        with torch.no_grad():
            logits, _ = model(torch.tensor([entry["tokens"][:-1]]))
        logprobs = logits[0].log_softmax(dim=-1)
        first = len(entry["tokens"]) - len(entry["logprobs"])
        for place, told in enumerate(entry["logprobs"], start=first):
            assert told["token"] == entry["tokens"][place]
            assert told["logprob"] == pytest.approx(
                float(logprobs[place - 1, told["token"]]), abs=1e-3
            )
            best = logprobs[place - 1].topk(3)
            assert [one["token"] for one in told["top"]] == best.indices.tolist()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--logprobs", "2"], "--logprobs goes into the objects of --json"),
        (["--json", "--logprobs", "-1"], "--logprobs is a count of tokens, 0 or more, not -1"),
        (["--engine", "plain", "--speculate", "draft"], "use --speculate lookup or off"),
    ],
)
def test_flags_that_do_not_go_together(
    directory: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", "Hello", "--model", str(directory), "--device", "cpu", *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
