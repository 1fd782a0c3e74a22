"""Parity: it agrees where all is well, and where it is not it says where and why."""

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regpt import GPTConfig, SamplingParams, complete, get_tokenizer
from regpt.cli import main
from regpt.parity import Check, Comparison, diagnose, references, run, tensors, text
from regpt.parity.compare import Texts
from regpt.parity.model_pair import Pair, draw_peaked, load_tokenizer, random_pair
from regpt.parity.references import generated
from regpt.parity.references import settings as in_their_words

CPU = torch.device("cpu")
SHAPE = GPTConfig(block_size=40, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return random_pair(SHAPE, tmp_path_factory.mktemp("parity") / "model", seed=4, device=CPU)


@pytest.fixture(scope="module")
def comparison(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    tokenizer = load_tokenizer(pair.directory, tmp_path_factory.mktemp("spare"))
    return Comparison("random", [pair], tokenizer)


@pytest.fixture
def lecture_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One draw a seed, for tests that look at what a difference leads to."""
    monkeypatch.setattr(text, "VARIANTS", ())


@pytest.fixture
def damaged(pair: Pair) -> Pair:
    """The pair with one number of transformers' model changed."""
    theirs = copy.deepcopy(pair.theirs)
    with torch.no_grad():
        theirs.transformer.h[1].mlp.c_fc.weight[3, 5] += 0.5
    return replace(pair, theirs=theirs)


def failing(check: Check) -> str:
    assert check.status == "differs", check
    return check.detail


# What must agree


def test_everything_agrees_and_every_kind_is_checked(comparison: Comparison) -> None:
    from transformers.utils import logging

    verbosity, state = logging.get_verbosity(), torch.get_rng_state()
    checks = {check.name: check for check in run(comparison, seeds=2)}
    expected = {
        "tokens", "weights there and back", "logits, float32", "logits, bfloat16", "loss",
        "gradients", "ten AdamW steps", "greedy text, generate", "sampled text, generate",
        "sampled text, pipeline", "stream `lecture`",
    }  # fmt: skip
    facts_left = {"published greedy text"}
    assert {name for name, check in checks.items() if check.status == "agrees"} == expected
    assert {name for name, check in checks.items() if check.status == "not checked"} == facts_left
    values = checks["sampled text, generate"].values
    assert values["equal"] == values["tokens"] > 500
    assert 0 < values["ended"] < values["texts"], "rows must end at different steps"
    assert logging.get_verbosity() == verbosity
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state must not move"


def test_logits_have_the_scale_of_a_trained_models(comparison: Comparison) -> None:
    logits = comparison.pairs[0].ours(tensors.windows(comparison.pairs[0], 2, length=64))[0]
    assert 3 < logits.std() < 5
    assert logits.softmax(-1).max(-1).values.mean() > 0.1, "the distributions must be peaked"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    heads=st.integers(1, 4),
    width=st.integers(2, 8),
    layers=st.integers(1, 3),
    vocab_size=st.integers(30, 400),
    block_size=st.integers(10, 33),
    seed=st.integers(0, 2**31),
    params=st.builds(
        SamplingParams,
        num_samples=st.integers(1, 6),
        top_k=st.none() | st.integers(1, 60),
        temperature=st.floats(0.3, 2.0),
        top_p=st.none() | st.floats(0.1, 1.0),
        min_p=st.none() | st.floats(0.0, 0.5),
        repetition_penalty=st.sampled_from([1.0, 0.8, 1.5]),
    ),
)
def test_any_shape_and_any_parameters_write_generates_text(
    tmp_path_factory: pytest.TempPathFactory,
    heads: int, width: int, layers: int, vocab_size: int, block_size: int, seed: int,
    params: SamplingParams,
) -> None:  # fmt: skip
    shape = GPTConfig(
        block_size=block_size, vocab_size=vocab_size,
        n_layer=layers, n_head=heads, n_embd=heads * width,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("any") / "model"
    pair = random_pair(shape, folder, seed=seed, device=CPU)
    prompt = text.prompt_tokens(pair, "any prompt")
    asked = replace(params, max_length=min(20, block_size), seed=seed)
    assert complete(pair.ours, prompt, asked) == generated(pair, prompt, asked)


def test_rows_that_end_do_not_disturb_those_that_go_on(pair: Pair) -> None:
    prompt = text.prompt_tokens(pair, text.PROMPT)
    lengths = set()
    for seed in range(6):
        params = SamplingParams(seed=seed, num_samples=8)
        rows = complete(pair.ours, prompt, params)
        assert rows == generated(pair, prompt, params)
        lengths |= {len(row) for row in rows}
    assert len(lengths) > 3
    assert max(lengths) == 30


def test_a_vocabulary_without_a_text_is_compared_as_tokens(
    tmp_path: Path, comparison: Comparison
) -> None:
    shape = GPTConfig(block_size=24, vocab_size=77, n_layer=1, n_head=1, n_embd=16)
    small = random_pair(shape, tmp_path / "model", seed=2, device=CPU)
    generate, pipeline = text.check_sampled([small], comparison.tokenizer, seeds=1)
    assert generate.status == "agrees"
    assert pipeline.status == "not checked"
    assert tensors.check_loss([small]).status == "agrees"


def test_peaked_weights_are_a_function_of_the_seed_and_leave_the_random_state() -> None:
    state = torch.get_rng_state()
    first, again, other = (draw_peaked(SHAPE, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.wte.weight, again.wte.weight)
    assert not torch.equal(first.wte.weight, other.wte.weight)


# What must be found


def mistake(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one on one side only."""
    if kind == "temperature":  # unsaid: `generate` has 1.0 for it, the pipeline its own default

        def unsaid(pair: Pair, params: SamplingParams) -> dict[str, object]:
            stated = in_their_words(pair, params)
            return {name: value for name, value in stated.items() if name != "temperature"}

        monkeypatch.setattr(references, "settings", unsaid)
    elif kind == "order":
        monkeypatch.setattr(
            text,
            "complete",
            lambda model, prompt, params: complete(model, prompt, replace(params, rng="lecture")),
        )
    else:
        for name in ("generated", "piped_texts", "piped_tokens"):
            honest = getattr(references, name)
            monkeypatch.setattr(
                text,
                name,
                lambda *given, honest=honest: honest(
                    *given[:-1], replace(given[-1], stop_at_eot=False)
                ),
            )


@pytest.mark.usefixtures("lecture_only")
@pytest.mark.parametrize(
    ("kind", "cause", "says"),
    [
        ("temperature", "temperature", "the pipeline drew at temperature 0.7"),
        ("order", "order of draw", "regpt drew in the lecture's order"),
        ("end-of-text", "end-of-text", "generate drew without stopping at end-of-text"),
    ],
)
def test_a_mistake_is_found_and_named(
    comparison: Comparison, kind: str, cause: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(kind, monkeypatch)
    generate, pipeline = text.check_sampled(comparison.pairs, comparison.tokenizer, seeds=1)
    found = pipeline if kind == "temperature" else generate
    assert says in failing(found)
    assert found.values["cause"] == cause
    assert found.values["equal"] < found.values["tokens"]
    if kind == "temperature":
        assert generate.status == "agrees", "only the pipeline has this default"
    else:
        assert pipeline.values["cause"] == cause


@pytest.mark.usefixtures("lecture_only")
def test_the_first_difference_is_where_it_says(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake("order", monkeypatch)
    generate, _ = text.check_sampled(comparison.pairs, comparison.tokenizer, seeds=1)
    (pair,) = comparison.pairs
    prompt = text.prompt_tokens(pair, text.PROMPT)
    params = SamplingParams(seed=0)
    ours = complete(pair.ours, prompt, replace(params, rng="lecture"))
    theirs = generated(pair, prompt, params)
    step, row = generate.values["step"], generate.values["row"]
    before = len(prompt) + step
    assert all(a[:before] == b[:before] for a, b in zip(ours, theirs, strict=True))
    assert ours[row][before] == generate.values["ours"]
    assert theirs[row][before] == generate.values["theirs"]
    name = get_tokenizer().decode([ours[row][before]])
    assert f"step {step} (position {before}), row {row}: regpt drew" in generate.detail
    assert repr(name) in generate.detail


def difference(pair: Pair, theirs: list[list[int]], params: SamplingParams) -> Texts:
    """Our text and another."""
    found = text.write(pair, text.PROMPT, params, lambda *_: theirs, "generate")
    assert found.differ
    return found


@pytest.mark.parametrize(
    ("change", "cause"),
    [({"top_k": None}, "top-k"), ({"rng": "portable"}, "order of draw"), ({"seed": 99}, "unknown")],
)
def test_other_settings_of_the_other_side(pair: Pair, change: dict, cause: str) -> None:
    prompt = text.prompt_tokens(pair, text.PROMPT)
    theirs = complete(pair.ours, prompt, SamplingParams(**change))
    found = diagnose.explain(difference(pair, theirs, SamplingParams()))
    assert found.name == cause
    assert f"Likely cause: {cause}" in found.text


def test_wrong_logits_are_the_cause_of_another_text(damaged: Pair) -> None:
    prompt = text.prompt_tokens(damaged, text.PROMPT)
    for seed in range(20):
        params = SamplingParams(seed=seed)
        theirs = generated(damaged, prompt, params)
        if theirs != complete(damaged.ours, prompt, params):
            found = diagnose.explain(difference(damaged, theirs, params))
            assert found.name == "logits"
            assert "look at the numbers first" in found.text
            return
    pytest.fail("a wrong weight changed no text under 20 seeds")


@pytest.mark.parametrize("rng", ["hf", "lecture", "portable"])
@pytest.mark.parametrize("step", [0, 1, 7])
def test_a_step_can_be_drawn_again(pair: Pair, rng: str, step: int) -> None:
    prompt = text.prompt_tokens(pair, text.PROMPT)
    params = SamplingParams(rng=rng, num_samples=3, stop_at_eot=False, repetition_penalty=1.2)
    rows = complete(pair.ours, prompt, params)
    place = len(prompt) + step
    unlike = Texts(
        pair=pair, params=params, prompt=prompt, ours=rows, against="generate",
        theirs=[[*row[:place], row[place] + 1, *row[place + 1 :]] for row in rows],
    )  # fmt: skip
    assert unlike.first == (step, 0)
    idx = diagnose.context(unlike)
    assert idx.shape == (3, place)
    token = diagnose.redraw(unlike, idx, pair.ours(idx)[0][:, -1])
    assert token.tolist() == [row[place] for row in rows]


def test_a_tie_is_told_from_a_mistake(pair: Pair) -> None:
    """Two tokens with the same row of the embedding, but for the last digits."""
    ours, theirs = copy.deepcopy(pair.ours), copy.deepcopy(pair.theirs)
    prompt = text.prompt_tokens(pair, text.PROMPT)
    params = SamplingParams(temperature=0.0, num_samples=1)
    (row,) = complete(ours, prompt, params)
    drawn, twin = row[len(prompt)], 1
    with torch.no_grad():
        ours.wte.weight[twin] = ours.wte.weight[drawn] * (1 - 1e-5)
        theirs.transformer.wte.weight[twin] = theirs.transformer.wte.weight[drawn] * (1 + 1e-5)
    tied = replace(pair, ours=ours, theirs=theirs)
    rows = generated(tied, prompt, params)
    assert rows[0][len(prompt)] == twin
    found = diagnose.explain(difference(tied, rows, params))
    assert found.name == "rounding"
    assert "not a mistake" in found.text


def test_wrong_numbers_are_found(damaged: Pair) -> None:
    assert tensors.check_logits([damaged], torch.float32).status == "differs"
    assert tensors.check_loss([damaged]).status == "differs"
    assert "worst of 28 tensors: h." in failing(tensors.check_gradients([damaged]))
    assert "h.1.mlp.c_fc.weight" in failing(tensors.check_weights([damaged]))


def test_a_nan_is_above_every_bound(pair: Pair) -> None:
    figures = iter([float("nan"), 0.0])
    check = tensors.worst("x", [pair, pair], lambda pair: (next(figures), ""), 1.0, "absolute")
    assert check.status == "differs"


def test_other_training_is_found(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, rates = torch.optim.AdamW, iter([3e-4, 3.1e-4])
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda parameters, lr: honest(parameters, lr=next(rates))
    )
    assert "worst in step" in failing(tensors.check_training([pair]))


class WrongTokenizer:
    """Right but for one letter."""

    def encode(self, text: str) -> list[int]:
        return get_tokenizer().encode(text.replace("é", "e"), allow_special=True)

    def decode(self, ids: list[int]) -> str:
        return get_tokenizer().decode(ids)


def test_other_tokens_are_found() -> None:
    assert "café" in failing(tensors.check_tokens(WrongTokenizer()))


@pytest.mark.usefixtures("lecture_only")
def test_equal_tokens_with_another_text_are_found(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = text.piped_texts
    monkeypatch.setattr(
        text,
        "piped_texts",
        lambda *arguments, **named: [row.rstrip() + "!" for row in honest(*arguments, **named)],
    )
    _, pipeline = text.check_sampled(comparison.pairs, comparison.tokenizer, seeds=1)
    assert "equal tokens became" in failing(pipeline)
    assert pipeline.values["cause"] == "decoding"


def test_nothing_compared_is_no_agreement() -> None:
    assert text.report("x", [], "").status == "differs"


def test_every_parameter_is_stated_to_generate(pair: Pair) -> None:
    stated = in_their_words(pair, SamplingParams())
    assert stated == {
        "max_length": 30, "num_return_sequences": 5, "repetition_penalty": 1.0,
        "eos_token_id": 50256, "pad_token_id": 50256, "do_sample": True,
        "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None,
    }  # fmt: skip


# What is published about the released weights


def test_the_dog_is_english() -> None:
    assert get_tokenizer().decode(text.DOG[:2]) == "The dog"
    assert get_tokenizer().decode(text.DOG).startswith("The dog was found in a field")


def test_other_weights_have_no_published_facts(pair: Pair, tmp_path: Path) -> None:
    assert text.check_published(str(pair.directory), pair).status == "not checked"
    assert not text.are_released("gpt2-medium", tmp_path)


def test_released_weights_are_known_by_name_or_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert text.are_released("gpt2", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    monkeypatch.setattr(text, "FILE_BYTES", 3)
    assert not text.are_released("mine", tmp_path)
    monkeypatch.setattr(
        text,
        "FILE_DIGEST",
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    )
    assert text.are_released("mine", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert not text.are_released("gpt2", tmp_path / "gpt2"), "a directory of that name is nobody's"


def test_random_weights_under_the_name_gpt2_do_not_pass(tmp_path: Path) -> None:
    shape = GPTConfig(block_size=64, n_layer=1, n_head=1, n_embd=16)
    pair = random_pair(shape, tmp_path / "model", seed=3, device=CPU)
    assert text.check_published("gpt2", pair).status == "differs"


# The command


def ends_with(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["parity", *arguments])
    assert stop.value.code == code


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command over a part of the checks, without computing much."""
    found = [
        Check(name="loss", status="agrees", figure="1e-7", bound="1e-5", detail="[model] x"),
        Check(name="published greedy text", status="not checked", detail="random weights"),
    ]
    monkeypatch.setattr("regpt.parity.run", lambda comparison, **options: iter(found))
    return iter(())


@pytest.mark.usefixtures("quick")
def test_the_table_says_what_was_not_checked(pair: Pair, capsys: pytest.CaptureFixture) -> None:
    main(["parity", str(pair.directory)])
    printed = capsys.readouterr().out
    assert "not checked" in printed
    assert "passed" not in printed
    assert "loss: [model] x" in printed
    assert printed.strip().endswith("1 agree, 0 differ, 1 not checked")


@pytest.mark.usefixtures("lecture_only")
def test_json_is_one_object_and_a_difference_is_exit_code_1(
    pair: Pair, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake("order", monkeypatch)
    ends_with(1, str(pair.directory), "--quick", "--json")
    out, error = capsys.readouterr()
    report = json.loads(out)
    assert report["ok"] is False
    assert report["model"] == str(pair.directory)
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["tokens"]["status"] == "agrees"
    assert checks["sampled text, generate"]["values"]["cause"] == "order of draw"
    assert checks["greedy text, generate"]["status"] == "agrees"
    assert error == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt2"], "HF_HUB_OFFLINE"),
        (["./nowhere"], "nowhere"),
        (["random", "--quick", "--seeds", "many"], "--seeds"),
        (["random", "--device", "tpu"], "device 'tpu'"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    ends_with(2, *arguments)
    out, error = capsys.readouterr()
    assert out == ""
    assert message in error
    assert error.count("\n") == 1


def test_no_seed_at_all_is_refused(pair: Pair, capsys: pytest.CaptureFixture) -> None:
    ends_with(2, str(pair.directory), "--seeds", "0", "--json")
    assert "seeds must be at least 1, got 0" in capsys.readouterr().err


def test_without_transformers_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    ends_with(2)
    error = capsys.readouterr().err
    assert "pip install -c constraints.txt '.[parity]'" in error
    assert error.count("\n") == 1
