"""The pages in a real browser, where one is installed: Chromium, headless.

`axe` is the accessibility checker of axe-core-python, from the test extra.
"""

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from chromium import FOUND, Page, chromium
from serving import Running, load, serving
from test_pages import append, line, write_run

from regpt.serve.runs import Runs

pytestmark = pytest.mark.skipif(FOUND is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run."""
    return write_run(tmp_path_factory.mktemp("runs") / "grows", steps=20)


@pytest.fixture(scope="module")
def paged(folder: Path) -> Iterator[Running]:
    """A server with a run."""
    with serving(load(), runs=Runs(folder, poll_seconds=0.05)) as running:
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
