"""HellaSwag and LAMBADA against a slow plain scorer; what is wrong with a file is named by line."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from choices import ending_nats, slow_choices, write_examples
from test_model import sharpen

from regpt import GPT, GPTConfig, UserError, find_runtime, get_tokenizer
from regpt.datasets import corpora
from regpt.evaluation import hellaswag as swag
from regpt.evaluation import lambada
from regpt.evaluation.continuations import encode_together
from regpt.system.distributed import World

CPU = find_runtime("cpu", dtype="fp32")
ALONE = World(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(4)
    return sharpen(GPT(GPTConfig(block_size=128, n_layer=2, n_head=2, n_embd=32)), 0.15).eval()


@pytest.fixture(scope="module")
def peer(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("peer") / "model"
    model.save_pretrained(directory)
    return transformers.GPT2LMHeadModel.from_pretrained(directory).eval()


Slow = tuple[swag.Scoring, list[swag.Example], list[dict[str, Any]], list[Any]]


@pytest.fixture(scope="module", params=swag.SCORINGS)
def slow(request: pytest.FixtureRequest, peer: Any, tmp_path_factory: Any) -> Slow:
    """200 made examples, and what the slow scorer says of each."""
    path = tmp_path_factory.mktemp("made") / "made.jsonl"
    raw = write_examples(path, 200)
    encode = get_tokenizer().encode
    said = [slow_choices(peer, encode, line, request.param) for line in raw]
    return request.param, swag.read_examples(path), raw, said


def test_the_same_choice_as_the_slow_scorer(model: GPT, slow: Slow) -> None:
    scoring, examples, raw, said = slow
    answers = swag.answer_all(model, examples, CPU, scoring=scoring, batch_tokens=700, world=ALONE)
    differ = 0
    for line, expected, answer in zip(raw, said, answers, strict=True):
        choice, choice_norm, nats = expected
        assert (answer.ind, answer.label) == (line["ind"], line["label"])
        assert (answer.choice, answer.choice_norm) == (choice, choice_norm)
        assert answer.nll == pytest.approx(nats, rel=1e-5)
        differ += choice != choice_norm
    assert differ > 20, "or the two rules would not be told apart"
    assert len(Counter(answer.choice for answer in answers)) == 4
    found = swag.accuracies(answers)
    right = sum(answer.choice == answer.label for answer in answers)
    assert found["acc"] == right / 200
    share = right / 200
    assert found["acc_stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 199))
    assert found["acc_norm"] == sum(answer.choice_norm == answer.label for answer in answers) / 200


def test_the_two_scorings_read_different_texts(tmp_path: Path) -> None:
    write_examples(tmp_path / "made.jsonl", 3)
    wikihow = swag.read_examples(tmp_path / "made.jsonl")[2]
    tokenizer = get_tokenizer()
    lecture = swag.encode(wikihow, "lecture", tokenizer)[0]
    assert tokenizer.decode(lecture.context) == wikihow.ctx
    assert tokenizer.decode(lecture.ending) == " " + wikihow.endings[0]
    harness = swag.encode(wikihow, "harness", tokenizer)[0]
    text = tokenizer.decode(harness.context + harness.ending)
    assert text.startswith("Food and Entertaining: How to ")
    assert "[" not in text
    assert ". " in text


def test_blanks_at_the_end_of_a_context_belong_to_the_ending() -> None:
    tokenizer = get_tokenizer()
    row = encode_together(tokenizer, "a dog ", " runs")
    assert row.context == tokenizer.encode("a dog")
    assert tokenizer.decode(row.ending) == "  runs"
    empty = encode_together(tokenizer, " ", "runs")
    assert empty.context == [tokenizer.eot]


def test_what_is_too_long_loses_its_beginning(model: GPT, peer: Any, tmp_path: Path) -> None:
    raw = write_examples(tmp_path / "made.jsonl", 1)[0]
    raw["ctx"] = "the old dog " * 60 + raw["ctx"]
    (tmp_path / "long.jsonl").write_text(json.dumps(raw))
    examples = swag.read_examples(tmp_path / "long.jsonl")
    answer = swag.answer_all(
        model, examples, CPU, scoring="lecture", batch_tokens=100, world=ALONE
    )[0]
    encode = get_tokenizer().encode
    for ending, nats in zip(raw["endings"], answer.nll, strict=True):
        tokens = encode(" " + ending)
        context = encode(raw["ctx"])[-(129 - len(tokens)) :]
        ids = torch.tensor([context + tokens])
        with torch.no_grad():
            logs = peer(input_ids=ids[:, :-1]).logits[0].double().log_softmax(-1)
        rows = torch.arange(len(context) - 1, ids.shape[1] - 1)
        assert nats == pytest.approx(-logs[rows, ids[0, len(context) :]].sum().item(), rel=1e-5)


def test_lambada_equals_the_slow_scorer(model: GPT, peer: Any, tmp_path: Path) -> None:
    texts = ["the dog saw the dog", "In “the” café they opened a naïve, old roof", "a b"]
    texts += [f"water {word} water {word}" for word in ("knife", "Schifffahrt", "of", "bread")]
    path = tmp_path / "lambada.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    passages = lambada.read_passages(path)
    scores = lambada.score_passages(model, passages, CPU, batch_tokens=40, world=ALONE)
    encode = get_tokenizer().encode
    total = 0.0
    for text, score in zip(texts, scores, strict=True):
        head, word = text.rsplit(" ", 1)
        nats, greedy = ending_nats(peer, encode(head), encode(" " + word))
        assert score.nll == pytest.approx(nats, rel=1e-5)
        assert score.greedy == greedy
        total += nats
    result = lambada.summarize(scores)
    assert math.log(result["perplexity"]) == pytest.approx(total / len(texts), rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(total / len(texts)), rel=1e-4)


def test_a_greedy_last_word_counts(model: GPT) -> None:
    encode, decode = get_tokenizer().encode, get_tokenizer().decode
    with torch.no_grad():
        logits, _ = model(torch.tensor([encode("the old dog")]))
    ranked = logits[0, -1].argsort(descending=True).tolist()
    words = [decode([token]) for token in ranked]
    place = next(i for i, word in enumerate(words) if word.startswith(" ") and word[1:].isalpha())
    passages = [("the old dog", words[place])]
    score = lambada.score_passages(model, passages, CPU, batch_tokens=40, world=ALONE)[0]
    assert score.greedy == (place == 0)


GOOD = {
    "ind": 1, "activity_label": "x", "ctx": "A man", "ctx_a": "A man", "ctx_b": "",
    "label": 0, "endings": ["a", "b", "c", "d"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"ind": 1,', r"line 2 is not JSON"),
        ("[1, 2]", "line 2 is no JSON object"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "ctx"}), "line 2 has no field 'ctx'"),
        (json.dumps(GOOD | {"label": 4}), "line 2: label 4 is not one of 0, 1, 2, 3"),
        (json.dumps(GOOD | {"label": -1}), "line 2: label -1 is not one of 0, 1, 2, 3"),
        (json.dumps(GOOD | {"label": "1"}), "line 2: field 'label' is not an integer"),
        (json.dumps(GOOD | {"endings": ["a", "b"]}), "line 2: 'endings' is not four texts"),
        (json.dumps(GOOD | {"endings": ["a", "b", "c", " "]}), "line 2: 'endings' is not four"),
        ("\xff", "line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=message) as caught:
        swag.read_examples(path)
    assert "\n" not in str(caught.value)
    assert len(swag.read_examples(path, limit=1)) == 1


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_examples(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="has no examples"):
        swag.read_examples(path)
    with pytest.raises(UserError, match="cannot read"):
        lambada.read_passages(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("text", ["word", " word", "two words "])
def test_a_passage_without_a_last_word(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lambada.jsonl"
    path.write_text(json.dumps({"text": text}))
    with pytest.raises(UserError, match="line 1: the text has no last word"):
        lambada.read_passages(path)


class Downloads:
    """Stands in for the network, and counts."""

    def __init__(self, data: bytes) -> None:
        self.data, self.count = data, 0

    def __call__(self, url: str, **options: object) -> bytes:
        self.count += 1
        assert url == swag.URL
        return self.data


def test_the_download_is_verified_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"hello\n"
    assert swag.blob_name(data) == "git blob ce013625030ba8dba906f756967f9e9ca394464a"  # git's own
    network = Downloads(data)
    monkeypatch.setattr(corpora, "download", network)
    monkeypatch.setattr(swag, "cache_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="wrong content, git blob ce0136"):
        swag.fetch()
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    monkeypatch.setattr(swag, "BLOB", swag.blob_name(data))
    path = swag.fetch()
    assert path.read_bytes() == data
    assert swag.fetch() == path
    assert network.count == 2, "kept"
    path.write_bytes(b"damaged")
    assert swag.fetch().read_bytes() == data
    assert network.count == 3


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(corpora.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(swag, "cache_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="no route; give a copy with --hellaswag FILE"):
        swag.fetch()
