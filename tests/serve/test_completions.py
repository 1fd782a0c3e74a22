"""OpenAI's own client against a real server: every field, streaming and not.

After vLLM's tests of the same endpoint, in our words; beam search, grammars and LoRA left out.
"""

import json
from typing import Any

import openai
import pytest
import torch
from serving import CONFIG, Running, load, serving, tiny

from regpt.core.tokenizer import END_OF_TEXT_ID, get_tokenizer
from regpt.evaluation.continuations import Continuation, encode_together, score_continuations
from regpt.serve.request import FIELDS, LEFT_OUT
from regpt.system.runtime import find_runtime
from regpt.training.distributed import World

PROMPT = "Hello, my name is"


def create(client: openai.OpenAI, **fields: Any) -> Any:
    known = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "seed": 1}
    extra = {
        name: fields.pop(name)
        for name in ("top_k", "min_p", "repetition_penalty", "return_tokens_as_token_ids")
        if name in fields
    }
    return client.completions.create(**(known | fields), extra_body=extra)


def gather(stream: Any) -> dict[int, dict[str, Any]]:
    """The choices of a stream, put together."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in stream:
        for piece in chunk.choices:
            assert len(chunk.choices) == 1
            choice = choices.setdefault(piece.index, {"text": "", "reasons": [], "logprobs": None})
            assert choice["reasons"] in ([], [None]), "a piece after the last one"
            choice["text"] += piece.text
            choice["reasons"] = [piece.finish_reason]
            if piece.logprobs is not None:
                found = piece.logprobs.model_dump()
                held = choice["logprobs"] or {name: [] for name in found}
                choice["logprobs"] = {name: held[name] + found[name] for name in found}
    return choices


def test_a_completion(client: openai.OpenAI) -> None:
    done = create(client, max_tokens=5, temperature=0)
    assert done.id.startswith("cmpl-")
    assert done.object == "text_completion"
    assert done.model == "tiny"
    assert done.system_fingerprint.startswith("fp_")
    (choice,) = done.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert choice.text
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (5, 5)
    assert done.usage.total_tokens == 10
    tokens = get_tokenizer().encode(PROMPT)
    assert create(client, prompt=tokens, max_tokens=5, temperature=0).choices[0].text == choice.text


def test_defaults(client: openai.OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt=PROMPT)
    assert done.usage is not None
    assert done.usage.completion_tokens <= 16
    texts = {client.completions.create(model="tiny", prompt=PROMPT).choices[0].text for _ in "ab"}
    assert len(texts) == 2, "without a seed every text is another"


@pytest.mark.parametrize(
    "fields", [{}, {"prompt": None}, {"prompt": ""}, {"prompt": [END_OF_TEXT_ID]}]
)
def test_no_prompt_is_end_of_text(served: Running, fields: dict[str, Any]) -> None:
    asked = {"max_tokens": 6, "seed": 3}
    _, _, plain = served.ask("/v1/completions", asked | {"prompt": [[END_OF_TEXT_ID]]})
    status, _, done = served.ask("/v1/completions", asked | fields)
    assert status == 200
    assert done["choices"] == plain["choices"]


def test_several_prompts_and_choices(client: openai.OpenAI) -> None:
    tokens = [get_tokenizer().encode(one) for one in (PROMPT, "The weather")]
    for prompts in ([PROMPT, "The weather"], tokens):
        done = create(client, prompt=prompts, n=3)
        assert [choice.index for choice in done.choices] == list(range(6))
        alone = [create(client, prompt=prompt, n=3) for prompt in prompts]
        texts = [choice.text for one in alone for choice in one.choices]
        assert [choice.text for choice in done.choices] == texts
        assert len(set(texts)) == 6
        assert done.usage.prompt_tokens == sum(map(len, tokens))
    one = create(client, n=1).choices[0].text
    assert one == create(client, n=3).choices[0].text, "choice j is the same whatever n"


def test_prompts_more_than_rows(client: openai.OpenAI) -> None:
    done = create(client, prompt=[PROMPT] * 3, n=5, max_tokens=3)
    texts = [choice.text for choice in done.choices]
    assert texts[:5] == texts[5:10] == texts[10:]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3},
        {"echo": True, "logprobs": 2, "n": 2},
        {"echo": True},
        {"logprobs": 0, "prompt": [PROMPT, "x"]},
        {"logprobs": 5, "prompt": "日本", "max_tokens": 40, "top_k": 400},
        {"stop": ["e", "th"], "logprobs": 1, "max_tokens": 60},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"echo": True, "max_tokens": 0, "n": 2},
        {"max_tokens": 0},
        {"temperature": 0.3, "top_p": 0.8, "min_p": 0.01, "top_k": 50},
        {"frequency_penalty": 1.5, "presence_penalty": -0.5, "repetition_penalty": 1.3},
        {"logit_bias": {"262": 30, "11": -100}},
    ],
)
def test_streaming_gives_the_same(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    whole = create(client, **fields)
    stream = create(client, **fields, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    choices = gather(chunks)
    assert len(choices) == len(whole.choices)
    for choice in whole.choices:
        assert choices[choice.index]["text"] == choice.text
        assert choices[choice.index]["reasons"] == [choice.finish_reason]
        expected = choice.logprobs and choice.logprobs.model_dump()
        assert choices[choice.index]["logprobs"] == expected


def test_a_stream_without_options_has_no_usage(client: openai.OpenAI) -> None:
    for options in ({}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}):
        chunks = list(create(client, stream=True, **options))
        assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_stream_lines(served: Running) -> None:
    body = {"prompt": PROMPT, "stream": True, "max_tokens": 3}
    status, headers, text = served.ask("/v1/completions", body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert "data: [DONE]" in text
    assert text.count('"finish_reason":"length"') == 1


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_logprobs(client: openai.OpenAI, count: int, echo: bool) -> None:
    done = create(client, logprobs=count, echo=echo)
    found = done.choices[0].logprobs
    size = 8 + 5 * echo
    assert {len(part) for part in found.model_dump().values()} == {size}
    if echo:
        assert found.token_logprobs[0] is found.top_logprobs[0] is None
        assert done.choices[0].text.startswith(PROMPT)
    for token, value, top in list(
        zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True)
    )[echo:]:
        assert value <= 0
        assert top[token] >= value
        assert max(count, 1) <= len(top) <= count + 1
    assert "".join(found.tokens) == done.choices[0].text
    assert found.text_offset[0] == 0
    for offset, token in zip(found.text_offset, found.tokens, strict=True):
        assert done.choices[0].text[offset:].startswith(token)


def test_greedy_tokens_are_the_largest(client: openai.OpenAI) -> None:
    found = create(client, logprobs=3, temperature=0, max_tokens=12).choices[0].logprobs
    for value, top in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert value == max(top.values())


def test_scoring_as_lm_eval_asks(served: Running, client: openai.OpenAI) -> None:
    tokens = [get_tokenizer().encode(text) for text in ("The cat sat on the mat", "Hello")]
    body = {
        "model": "tiny",
        "prompt": tokens,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    headers = {"Authorization": "Bearer "}
    status, _, done = served.ask("/v1/completions", body, headers=headers)
    assert status == 200
    for choice, prompt in zip(done["choices"], tokens, strict=True):
        found = choice["logprobs"]
        assert len(found["tokens"]) == len(prompt) + 1
        assert found["token_logprobs"][-1] == max(found["top_logprobs"][-1].values())
    whole = client.completions.create(
        model="tiny", prompt=tokens[0][:3], max_tokens=0, echo=True, logprobs=1
    )
    part = done["choices"][0]["logprobs"]["token_logprobs"][:3]
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.token_logprobs == part


def test_scores_are_evaluations(served: Running) -> None:
    """Sums and greedy flags as lm-eval forms them, against `regpt evaluate`'s own scoring."""
    tokenizer = get_tokenizer()
    pairs = [("The cat sat on", " the mat"), ("Hello", " there, you"), ("日本", "語 and more")]
    rows = [encode_together(tokenizer, context, ending) for context, ending in pairs]
    model = tiny()
    greedy = model(torch.tensor([rows[0].context]))[0][0, -1].argmax()
    rows.append(Continuation(rows[0].context, [int(greedy)]))
    runtime = find_runtime("cpu", dtype="fp32")
    world = World(device=torch.device("cpu"))
    scores = score_continuations(model, rows, runtime, batch_tokens=64, world=world)
    body: dict[str, Any] = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}
    body["prompt"] = [row.context + row.ending for row in rows]
    _, _, done = served.ask("/v1/completions", body)
    for row, score, choice in zip(rows, scores, done["choices"], strict=True):
        found, start = choice["logprobs"], len(row.context)
        values = found["token_logprobs"][start:-1]
        tops = found["top_logprobs"][start:-1]
        assert sum(values) == pytest.approx(-score.nll, abs=1e-4)
        best = [value == max(top.values()) for value, top in zip(values, tops, strict=True)]
        assert all(best) == score.greedy
    assert scores[-1].greedy


def test_end_of_text_ends_a_text(client: openai.OpenAI) -> None:
    done = create(client, logit_bias={str(END_OF_TEXT_ID): 100}, logprobs=1, echo=True)
    choice = done.choices[0]
    assert (choice.text, choice.finish_reason) == (PROMPT, "stop")
    assert choice.logprobs.tokens[-1] == "<|endoftext|>"
    assert choice.logprobs.text_offset[-1] == len(PROMPT)
    assert done.usage.completion_tokens == 1


@pytest.mark.parametrize("many", [1, 40])
def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI, many: int) -> None:
    whole = create(client, max_tokens=40, logprobs=0).choices[0]
    stop = whole.text[15:18]
    cut = whole.text.index(stop)
    stops = [stop, *(f"never {number}" for number in range(many))]
    done = create(client, max_tokens=40, logprobs=0, stop=stops if many > 1 else stop)
    choice = done.choices[0]
    assert (choice.text, choice.finish_reason) == (whole.text[:cut], "stop")
    assert done.usage.completion_tokens < 40
    offsets = [one for one in whole.logprobs.text_offset if one < cut]
    assert choice.logprobs.text_offset == offsets


def test_bias_and_penalties(client: openai.OpenAI) -> None:
    done = create(client, logit_bias={"262": 100}, max_tokens=3)
    assert done.choices[0].text == " the the the"
    done = create(client, logit_bias={"262": 8, "11": 7}, temperature=0, max_tokens=6, logprobs=0)
    repeated = done.choices[0].logprobs.tokens
    done = create(
        client,
        logit_bias={"262": 8, "11": 7},
        temperature=0,
        max_tokens=6,
        logprobs=0,
        frequency_penalty=2,
        presence_penalty=2,
    )
    assert len(set(done.choices[0].logprobs.tokens)) >= len(set(repeated))
    greedy = [
        create(client, top_k=1).choices[0].text,
        create(client, temperature=0).choices[0].text,
    ]
    assert greedy[0] == greedy[1] == create(client, top_p=0).choices[0].text
    assert greedy[0] == create(client, min_p=1).choices[0].text


def test_token_ids_instead_of_texts(client: openai.OpenAI) -> None:
    found = create(client, logprobs=2, return_tokens_as_token_ids=True).choices[0].logprobs
    ids = [int(token.removeprefix("token_id:")) for token in found.tokens]
    plain = create(client, logprobs=2).choices[0].logprobs
    assert [get_tokenizer().decode([one]) for one in ids] == plain.tokens
    assert all(key.startswith("token_id:") for top in found.top_logprobs for key in top)


def test_partial_characters(client: openai.OpenAI) -> None:
    """Three tokens of one character have one offset, and one text: U+FFFD."""
    tokens = get_tokenizer().encode("a 日b")
    done = create(client, prompt=tokens, echo=True, logprobs=20, max_tokens=1)
    found = done.choices[0].logprobs
    assert done.choices[0].text.startswith("a 日b")
    assert found.text_offset[: len(tokens)] == [0, *[1] * (len(tokens) - 3), 2, 3][
        : len(tokens)
    ] or (found.text_offset[len(tokens) - 1] == 3)
    for value, token, top in zip(
        found.token_logprobs[1:], found.tokens[1:], found.top_logprobs[1:], strict=True
    ):
        assert top[token] >= value


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"logprobs": 21}, "from 0 to 20"),
    ({"logprobs": True}, "an integer"),
    ({"n": 0}, "from 1 to 128"),
    ({"n": 129}, "from 1 to 128"),
    ({"max_tokens": -1}, "at least 0"),
    ({"max_tokens": 1.5}, "an integer"),
    ({"temperature": 2.1}, "from 0 to 2"),
    ({"temperature": "hot"}, "a number"),
    ({"top_p": 1.1}, "from 0 to 1"),
    ({"presence_penalty": 3}, "from -2 to 2"),
    ({"stop": [1]}, "strings"),
    ({"seed": 2**70}, "from"),
    ({"logit_bias": {"x": 1}}, "not a token id"),
    ({"logit_bias": {"50257": 1}}, "outside the vocabulary"),
    ({"logit_bias": {"1": 101}}, "from -100 to 100"),
    ({"prompt": []}, "empty list"),
    ({"prompt": [[]]}, "empty list"),
    ({"prompt": [-1]}, "outside the vocabulary"),
    ({"prompt": [[-1]]}, "outside the vocabulary"),
    ({"prompt": [999999]}, "outside the vocabulary of 50257"),
    ({"prompt": [1, "a"]}, "text, tokens"),
    ({"prompt": [True]}, "text, tokens"),
    ({"prompt": {"a": 1}}, "text, tokens"),
    ({"prompt": ["a"] * 257}, "at most 256"),
    ({"prompt": ["a"] * 20, "n": 100}, "more than 1024"),
    ({"prompt": [5] * 300}, "300 tokens"),
    ({"prompt": [5] * 250, "max_tokens": 7}, "together 257, but the model has 256"),
    ({"prompt": "a" * 100_000}, "256 positions"),
    ({"stream_options": {"include_usage": True}}, "stream: true"),
    ({"stream": True, "stream_options": {"include_use": True}}, "stream_options.include_usage"),
    ({"suffix": "end"}, "not offered"),
    ({"best_of": 3}, "not offered"),
    ({"echo": "yes"}, "true or false"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=[words for _, words in WRONG])
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_fields(
    client: openai.OpenAI, fields: dict[str, Any], words: str, stream: bool
) -> None:
    if "stream_options" in fields:
        stream = "stream" in fields
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, **({"stream": stream} | fields))
    error = caught.value.body
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert create(client, max_tokens=1).choices


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_token", "max_tokens"),
        ("repeat_penalty", "repetition_penalty"),
        ("logprob", "logprobs"),
    ],
)
def test_an_unknown_field_is_told_its_neighbour(
    client: openai.OpenAI, name: str, near: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=f"did you mean {near}"):
        client.completions.create(model="tiny", prompt="a", extra_body={name: 1})


def test_null_means_the_default(served: Running) -> None:
    body: dict[str, Any] = dict.fromkeys([*FIELDS, *LEFT_OUT]) | {"prompt": "a", "seed": 5}
    status, _, done = served.ask("/v1/completions", body)
    assert status == 200
    _, _, plain = served.ask("/v1/completions", {"prompt": "a", "seed": 5})
    assert done["choices"] == plain["choices"]


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"other.*not served"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "regpt"


def test_tokenizer(served: Running) -> None:
    _, _, info = served.ask("/tokenizer_info")
    assert info["eos_token"] == "<|endoftext|>"
    assert info["model_max_length"] == CONFIG.block_size
    for name in ("prompt", "content"):
        _, _, found = served.ask(
            "/tokenize", {name: "Hi <|endoftext|>", "add_special_tokens": False}
        )
        assert found["tokens"] == [17250, 220, END_OF_TEXT_ID]
    _, _, found = served.ask("/detokenize", {"tokens": [17250, 220, END_OF_TEXT_ID]})
    assert found["prompt"] == "Hi <|endoftext|>"
    for path, body in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": 1}),
        ("/tokenize", {"prompt": "a", "content": "b"}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {}),
    ):
        assert served.ask(path, body)[0] == 400


def test_health_and_metrics(served: Running) -> None:
    assert served.ask("/health")[2] == {"status": "ok"}
    served.ask("/v1/completions", {"prompt": "a b c", "max_tokens": 3})
    status, headers, page = served.ask("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    samples = dict(
        line.rsplit(" ", 1) for line in page.splitlines() if line and not line.startswith("#")
    )
    assert float(samples['regpt_rows{model="tiny"}']) == 4
    assert float(samples['regpt_generated_tokens_total{model="tiny"}']) >= 3
    count = int(samples['regpt_first_token_seconds_count{model="tiny"}'])
    assert int(samples['regpt_first_token_seconds_bucket{model="tiny",le="+Inf"}']) == count > 0


def test_two_models(served: Running) -> None:
    body = {"prompt": "a b c", "max_tokens": 8, "seed": 3}
    with serving(load(), load(tiny(1), name='o"ther')) as running:
        cards = running.ask("/v1/models")[2]["data"]
        assert [card["id"] for card in cards] == ["tiny", 'o"ther']
        first = running.ask("/v1/completions", body | {"model": "tiny"})[2]
        other = running.ask("/v1/completions", body | {"model": 'o"ther'})[2]
        assert first["choices"] == served.ask("/v1/completions", body)[2]["choices"]
        assert first["choices"] == running.ask("/v1/completions", body)[2]["choices"]
        assert other["choices"] != first["choices"]
        assert (other["model"], other["system_fingerprint"]) == (
            'o"ther',
            cards[1]["system_fingerprint"],
        )
        status, _, refused = running.ask("/v1/completions", body | {"model": "third"})
        assert status == 404
        assert "'tiny' and 'o\"ther'" in refused["error"]["message"]
        page = running.ask("/metrics")[2]
    assert 'regpt_generated_tokens_total{model="tiny"} 16' in page
    assert r'regpt_generated_tokens_total{model="o\"ther"} 8' in page
    assert page.count("# TYPE regpt_generated_tokens_total") == 1


def test_infinities_are_numbers(served: Running) -> None:
    body = {"prompt": "a", "max_tokens": 1, "logprobs": 1, "logit_bias": {"5": -100}}
    _, _, done = served.ask("/v1/completions", body)
    assert "Infinity" not in json.dumps(done)


def test_no_row_was_left_in_use(served: Running) -> None:
    served.settle()
