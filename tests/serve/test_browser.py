"""The pages in a real browser, where one is installed: Chromium, headless.

`axe` is the accessibility checker of axe-core-python, from the test extra.
"""

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from chromium import FOUND, Page, chromium
from serving import Running, load, serving, tiny
from test_pages import append, line, write_run
from torch import Tensor

from regpt.core.sampling import SamplingParams, filtered
from regpt.serve.runs import Runs
from regpt.serve.scheduler import Part

pytestmark = pytest.mark.skipif(FOUND is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run."""
    return write_run(tmp_path_factory.mktemp("runs") / "grows", steps=20)


@pytest.fixture(scope="module")
def paged(folder: Path) -> Iterator[Running]:
    """A server with a run, of a model that takes its time."""
    loaded = load()
    step = loaded.backend.step

    def slower(parts: Sequence[Part], top_k: int | None) -> Tensor:
        time.sleep(0.01)
        return step(parts, top_k)

    loaded.backend.step = slower
    with serving(loaded, runs=Runs(folder, poll_seconds=0.05)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    """One browser for the file."""
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser: Page, paged: Running) -> Iterator[Page]:
    """A tab in which nothing may go wrong, and which may ask nobody else."""
    browser.size(1280, 900)
    browser.problems.clear()
    browser.requests.clear()
    yield browser
    assert not browser.problems
    home = f"http://127.0.0.1:{paged.port}/"
    assert all(url.startswith((home, "data:")) for url in browser.requests), browser.requests
    browser.open("about:blank#done")


def serious(page: Page) -> list[str]:
    """What axe finds that keeps people out."""
    spec = find_spec("axe_core_python")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("axe-core-python is not installed")
    script = Path(spec.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8")
    page.run(script + "; 0")
    found = page.run("axe.run().then(r => r.violations.map(v => [v.impact, v.id, "
                     "v.nodes.map(n => n.html + ' ' + n.failureSummary).join(' ')]))")  # fmt: skip
    return [str(one) for one in found if one[0] in ("serious", "critical")]


def test_the_run_page_grows_with_its_run(page: Page, paged: Running, folder: Path) -> None:
    page.open(f"http://127.0.0.1:{paged.port}/runs/grows")
    figures = "document.querySelector('#figures').textContent"
    page.wait(f"{figures}.includes('20of 100')")
    label = page.run("document.querySelector('.chart svg').getAttribute('aria-label')")
    assert "to 10 at step 20" in label
    assert "ln 50257" in page.run("document.querySelector('.chart svg').textContent")
    for step in range(21, 41):
        append(folder, line(step))
    page.wait(f"{figures}.includes('40of 100')")
    text = '{"step": 40, "samples": {"Hi": ["Hi <img src=x onerror=alert(1)>"]}}\n'
    append(folder, text)
    page.wait("document.querySelector('blockquote')?.textContent === "
              "'Hi <img src=x onerror=alert(1)>'")  # fmt: skip
    assert page.run("document.querySelectorAll('img').length") == 0
    page.run("document.querySelector('.chart svg').focus()")
    page.press("ArrowLeft", code=37)
    page.wait("document.querySelector('.legend').textContent.includes('step 99')")


def test_a_hidden_run_page_asks_for_nothing(page: Page, paged: Running, folder: Path) -> None:
    page.open(f"http://127.0.0.1:{paged.port}/runs/grows")
    page.wait("document.querySelectorAll('.chart path').length > 1")
    hide = "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}});"
    tell = "document.dispatchEvent(new Event('visibilitychange'))"
    page.run(hide.format("true") + tell)
    time.sleep(0.3)
    asked = len([url for url in page.requests if url.endswith("/events")])
    append(folder, line(41))
    time.sleep(0.5)
    assert len([url for url in page.requests if url.endswith("/events")]) == asked
    figures = "document.querySelector('#figures').textContent"
    assert "40of 100" in page.run(figures)
    page.run(hide.format("false") + tell)
    page.wait(f"{figures}.includes('41of 100')")


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious_on_the_run_page(page: Page, paged: Running, dark: bool) -> None:
    page.size(390, 844, dark=dark)
    page.open(f"http://127.0.0.1:{paged.port}/runs/grows")
    page.wait("document.querySelectorAll('.chart path').length > 1")
    assert serious(page) == []
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


TEXT = "document.querySelector('#text').value"
BUSY = "!document.querySelector('#stop').disabled"
PROMPT = "Hello, I am"
CONTROL, SHIFT, ALT = 2, 8, 1


def scratchpad(page: Page, paged: Running, *, prompt: str = PROMPT, length: int = 12) -> None:
    """Open an empty scratchpad and write into it."""
    home = f"http://127.0.0.1:{paged.port}/"
    page.open(home)
    page.wait("'ready' in document.documentElement.dataset")
    page.run("addEventListener('pagehide', () => localStorage.clear())")  # after its own
    page.open(f"{home}?")
    page.wait("'ready' in document.documentElement.dataset")
    choose(page, "length", length)
    page.run("document.querySelector('#text').focus()")
    page.type(prompt)
    page.wait("document.querySelectorAll('.back .token').length > 3")
    page.wait("document.querySelectorAll('.alternative').length >= 12")


def choose(page: Page, name: str, value: float) -> None:
    """Move a slider."""
    page.run(f"(() => {{ const one = document.querySelector('#{name}'); one.value = {value};"
             "one.dispatchEvent(new Event('input')) })()")  # fmt: skip


def click(page: Page, selector: str) -> None:
    """Click."""
    page.run(f"document.querySelector({selector!r}).click()")


def written(page: Page) -> str:
    """The text, when the model is done."""
    page.wait(f"!({BUSY})")
    return page.run(TEXT)


def completion(paged: Running, **body: object) -> str:
    """What the server writes."""
    status, _, answer = paged.ask("/v1/completions", body)
    assert status == 200, answer
    return answer["choices"][-1]["text"]


def test_a_text_is_continued_undone_and_kept(page: Page, paged: Running) -> None:
    scratchpad(page, paged)
    page.press("Enter", code=13, modifiers=CONTROL)
    page.wait(BUSY)
    first = written(page)
    asked = {"prompt": PROMPT, "seed": 42, "top_k": 50}
    assert first == PROMPT + completion(paged, **asked, max_tokens=12)
    page.press("Enter", code=13, modifiers=ALT)  # one token more is one longer request's
    page.wait(f"{TEXT} !== {json.dumps(first)}")
    second = written(page)
    assert second == PROMPT + completion(paged, **asked, max_tokens=13)
    page.press("z", code=90, modifiers=CONTROL)
    page.wait(f"{TEXT} === {json.dumps(first)}")
    page.press("z", code=90, modifiers=CONTROL)
    page.wait(f"{TEXT} === {json.dumps(PROMPT)}")
    for _ in range(2):
        page.press("Z", code=90, modifiers=CONTROL | SHIFT)
    page.wait(f"{TEXT} === {json.dumps(second)}")
    page.open(f"http://127.0.0.1:{paged.port}/")
    page.wait("'ready' in document.documentElement.dataset")
    assert page.run(TEXT) == second
    page.wait("document.querySelectorAll('.alternative').length >= 12")
    click(page, "#undo")
    page.wait(f"{TEXT} === {json.dumps(first)}")


def test_a_click_on_an_alternative_branches_there(page: Page, paged: Running) -> None:
    scratchpad(page, paged)
    click(page, "#continue")
    page.wait(BUSY)
    before = written(page)
    page.wait("document.querySelectorAll('.back .token').length >= 12")
    box = "document.querySelectorAll('.back .token')[5].getBoundingClientRect()"
    page.move(page.run(f"{box}.x") + 3, page.run(f"{box}.y") + 12)
    page.wait("document.querySelector('#place-name').textContent.startsWith('In place of')")
    start = page.run("[...document.querySelectorAll('.back .token')].slice(0, 5)"
                     ".map(one => one.textContent).join('')")  # fmt: skip
    page.run("document.querySelectorAll('.alternative')[2].dispatchEvent("
             "new MouseEvent('click', {shiftKey: true}))")  # fmt: skip
    after = page.wait(f"{TEXT} !== {json.dumps(before)} && {TEXT}")
    assert after.startswith(start)
    assert len(after) < len(before)
    page.wait("document.querySelector('#place-name').textContent === 'What comes next'")
    page.wait("document.querySelectorAll('.alternative').length >= 12")
    click(page, ".alternative")  # and on from the likeliest
    page.wait(BUSY)
    assert len(written(page)) > len(after)
    click(page, "#undo")
    assert page.run(TEXT) == after
    click(page, "#undo")
    assert page.run(TEXT) == before


def test_stop_keeps_what_was_written_and_an_edit_stops_too(page: Page, paged: Running) -> None:
    scratchpad(page, paged, length=200)
    click(page, "#continue")
    page.wait(f"{TEXT}.length > {len(PROMPT) + 10}")
    click(page, "#stop")
    stopped = written(page)
    whole = PROMPT + completion(paged, prompt=PROMPT, seed=42, top_k=50, max_tokens=200)
    assert len(stopped) < len(whole)
    assert whole.startswith(stopped.rstrip("\ufffd"))
    click(page, "#continue")
    page.wait(f"{TEXT}.length > {len(stopped) + 10}")
    page.run("document.querySelector('#text').focus()")
    page.type(" and so on")
    assert written(page).endswith(" and so on")
    paged.settle()


def test_the_command_shown_gives_the_text(page: Page, paged: Running) -> None:
    scratchpad(page, paged, prompt='It\'s "here":\n$HOME')
    choose(page, "top-p", 0.9)
    choose(page, "temperature", 0.8)
    click(page, "#continue")
    page.wait(BUSY)
    text = written(page)
    click(page, "#copy")
    page.wait("document.querySelectorAll('#command-list pre').length === 2")
    sample, curl = page.run("[...document.querySelectorAll('#command-list pre')]"
                            ".map(one => one.textContent)")  # fmt: skip
    words = shlex.split(sample)
    assert words[:3] == ["regpt", "sample", 'It\'s "here":\n$HOME']
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert flags["--temperature"] == "0.8"
    assert flags["--rng"] == "portable"
    words = shlex.split(curl.replace("\\\n", " "))
    body = json.loads(words[words.index("-d") + 1])
    assert words[2 + words[1:].index("-H")].startswith("content-type")
    assert text == 'It\'s "here":\n$HOME' + completion(paged, **body)
    assert int(flags["--max-length"]) == len(body["prompt"]) + body["max_tokens"]


def test_five_of_one_seed(page: Page, paged: Running) -> None:
    scratchpad(page, paged)
    click(page, "#five")
    page.wait("document.querySelectorAll('#sample-list button:not(:disabled)').length === 5")
    shown = page.run("[...document.querySelectorAll('#sample-list p')].map(one => one.textContent)")
    status, _, answer = paged.ask("/v1/completions", {
        "prompt": PROMPT, "seed": 42, "top_k": 50, "max_tokens": 12, "n": 5})  # fmt: skip
    assert status == 200
    assert shown == [choice["text"] for choice in answer["choices"]]
    click(page, "#sample-list li:nth-child(3) button")
    assert page.run(TEXT) == PROMPT + shown[2]


def test_two_models_on_one_prompt(browser: Page) -> None:
    with serving(load(), load(tiny(1), name="other")) as running:
        scratchpad(browser, running)
        click(browser, "#compare")
        ready = "#sample-list button:not(:disabled)"
        browser.wait(f"document.querySelectorAll('{ready}').length === 2")
        texts = "[...document.querySelectorAll('#sample-list p')].map(one => one.textContent)"
        shown = browser.run(texts)
        body = {"prompt": PROMPT, "seed": 42, "top_k": 50, "max_tokens": 12}
        asked = [completion(running, **body, model=name) for name in ("tiny", "other")]
        assert shown == asked
        assert shown[0] != shown[1]
        names = "[...document.querySelectorAll('#sample-list h3')].map(one => one.textContent)"
        assert browser.run(names) == ["tiny", "other"]
        click(browser, "#sample-list li:nth-child(2) button")
        assert browser.run(TEXT) == PROMPT + shown[1]
        browser.wait("document.querySelector('.alternative') !== null")  # the page's model reads it
        assert browser.run("document.querySelector('#copy').disabled")  # it did not write it
        assert serious(browser) == []
        assert not browser.problems
        browser.open("about:blank#done")


def test_sliders_reshape_the_bars_without_asking(page: Page, paged: Running) -> None:
    scratchpad(page, paged)
    row = "document.querySelector('.alternative').getAttribute('aria-label')"
    time.sleep(0.3)
    asked, before = len(page.requests), page.run(row)
    choose(page, "temperature", 0)
    assert "100% after" in page.run(row)
    choose(page, "temperature", 1)
    assert page.run(row) == before
    choose(page, "top-k", 3)
    cut = "[...document.querySelectorAll('.alternative')].map(one => one.classList.contains('cut'))"
    assert page.run(cut) == [False] * 3 + [True] * (len(page.run(cut)) - 3)
    assert len(page.requests) == asked


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.7, 15, None), (1.5, 20, 0.8), (1.0, 5, 0.3), (1.0, None, 0.5), (1.0, None, None)],
)
def test_the_bars_are_the_samplers(
    page: Page, paged: Running, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    page.open(f"http://127.0.0.1:{paged.port}/runs/grows")
    torch.manual_seed(3)
    logits = 4 * torch.randn(1, 1000)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    expected = filtered(logits, params).softmax(-1)[0]
    best = logits.log_softmax(-1)[0].topk(20)
    top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    asked = json.dumps({"temperature": temperature, "topK": top_k, "topP": top_p or 1})
    found = page.run(f"import('/static/shaping.js').then(shaping => "
                     f"shaping.reshape({json.dumps(top)}, {asked}, 1000))")  # fmt: skip
    assert found["exact"]
    for row in found["rows"]:
        assert row["after"] == pytest.approx(expected[row["id"]].item(), rel=1e-4, abs=1e-9)
    shown = sum(row["after"] for row in found["rows"])
    assert found["rest"]["after"] == pytest.approx(1 - shown, abs=1e-6)


def test_bytes_of_parts_of_characters(page: Page, paged: Running) -> None:
    scratchpad(page, paged, prompt="naïve 🙂 日本")
    click(page, "#tokens summary")
    page.wait("document.querySelectorAll('#token-list li').length > 5")
    codes = page.run("[...document.querySelectorAll('#token-list code')].map(c => c.textContent)")
    assert bytes.fromhex(" ".join(codes)).decode() == "naïve 🙂 日本"


def test_nothing_is_lost_where_the_server_is_not_reached(page: Page, paged: Running) -> None:
    scratchpad(page, paged)
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.send("Network.emulateNetworkConditions", **offline)
    click(page, "#continue")
    page.wait("document.querySelector('#status').textContent.includes('The text is kept')")
    assert page.run(TEXT) == PROMPT
    page.send("Network.emulateNetworkConditions", **offline | {"offline": False, "latency": 200})
    page.wait("!document.querySelector('#continue').disabled")
    click(page, "#continue")
    page.wait(f"{TEXT}.length > {len(PROMPT)}")  # at 200 ms too
    assert written(page) == PROMPT + completion(
        paged, prompt=PROMPT, seed=42, top_k=50, max_tokens=12
    )
    page.send("Network.emulateNetworkConditions", **offline | {"offline": False})
    assert all("ERR_INTERNET_DISCONNECTED" in one for one in page.problems)
    page.problems.clear()


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious_on_the_scratchpad(
    page: Page, paged: Running, dark: bool
) -> None:
    scratchpad(page, paged)
    for width in (1280, 390):
        page.size(width, 844, dark=dark)
        click(page, "#five")
        page.wait("document.querySelectorAll('#sample-list button:not(:disabled)').length === 5")
        assert serious(page) == []
        assert page.run("document.documentElement.scrollWidth <= innerWidth")


def test_inside_a_text(page: Page, paged: Running) -> None:
    scratchpad(page, paged, prompt="Inside\na text it is")
    page.open(f"http://127.0.0.1:{paged.port}/inside")  # takes the scratchpad's text along
    page.wait("'ready' in document.documentElement.dataset")
    assert page.run("document.querySelector('#text').value") == "Inside\na text it is"
    tokens = "[...document.querySelectorAll('#tokens > *')].map(one => one.textContent)"
    assert "".join(page.run(tokens)[:-1]) == "Inside\na text it is"
    page.run("document.querySelector('#tokens > :last-child').focus()")
    page.press("ArrowLeft", code=37)
    page.wait("document.querySelector('#place-name').textContent === '␣is'")
    assert page.run("document.querySelectorAll('#lens tbody tr').length") == 3
    assert page.run("document.querySelectorAll('#lens .chosen').length") == 4
    page.run("(() => { const layer = document.querySelector('#layer'); layer.value = 0;"
             "layer.dispatchEvent(new Event('change')) })()")  # fmt: skip
    page.wait("document.querySelectorAll('#heads button').length === 2")
    click(page, "#heads button:nth-child(2)")
    assert (
        page.run("document.querySelector('#by-attention').getAttribute('aria-pressed')") == "true"
    )
    for dark in (False, True):
        for width in (1280, 390):
            page.size(width, 844, dark=dark)
            assert serious(page) == []
            assert page.run("document.documentElement.scrollWidth <= innerWidth")


def test_a_page_asks_for_the_key(browser: Page) -> None:
    browser.problems.clear()
    with serving(load(), api_key="a key of some length") as running:
        browser.open(f"http://127.0.0.1:{running.port}/")
        browser.wait("document.querySelector('input[type=password]') !== null")
        browser.type("a key of some length")
        browser.press("Enter", code=13)
        browser.wait("'ready' in document.documentElement.dataset")
        assert browser.run("document.querySelector('#served').textContent") == "tiny"
        assert all("401" in one for one in browser.problems)
        browser.problems.clear()
        browser.open("about:blank#done")
