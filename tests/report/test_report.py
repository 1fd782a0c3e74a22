"""The page opens from disk, asks nobody for anything, and shows what the run recorded."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_cli import fails

from regpt.cli import main
from regpt.report.history import read_history
from regpt.report.references import EDU, REFERENCES, SHAKESPEARE, find_references
from regpt.report.run_page import charts
from regpt.system.plot import Chart, Curve, short, svg, thin
from regpt.training.config import RunConfig
from regpt.training.presets import PRESETS
from regpt.training.run_dir import RunDirectory

Capture = pytest.CaptureFixture[str]
VOID = {"meta", "br", "img"}
PROMPT = "A prompt & more"
HOSTILE = "</script><script>alert(1)</script> & <img src=x onerror=alert(2)> \"'"


def make_run(
    path: Path,
    *,
    steps: int = 40,
    fingerprint: str | None = SHAKESPEARE.fingerprint,
    validation_tokens: int | None = SHAKESPEARE.validation_tokens,
    preset: str = "quickstart",
    **settings: Any,
) -> Path:
    """A run's directory as training leaves it, without the model."""
    path.mkdir(parents=True)
    config = RunConfig(steps=steps, validation_fraction=0.1, preset=preset, **settings)
    facts = {"sources": ", ".join(config.data), "fingerprint": fingerprint,
             "validation_tokens": validation_tokens}  # fmt: skip
    record = {"config": config.to_json(), "data": facts, "runtime": "cpu", "versions": {}}
    (path / "run.json").write_text(json.dumps(record))
    lines: list[dict[str, Any]] = [{"step": 0, "samples": {PROMPT: ["one\ntwo", HOSTILE]}}]
    for step in range(1, steps + 1):
        lines.append(
            {"step": step, "loss": 10 - 0.1 * step, "learning_rate": 1e-3, "grad_norm": 1 / step,
             "tokens": 128 * step, "tokens_per_second": 1000.0 + step}
        )  # fmt: skip
        if step % 20 == 0:
            lines.append({"step": step, "val_loss": 8 - step / 20, "val_bits_per_byte": 3.0,
                          "val_nats_per_character": 2 - step / 100, "val_tokens": 6})  # fmt: skip
        if step % 10 == 0:
            lines.append({"step": step, "quick_val_loss": 8.5 - step / 20, "quick_val_tokens": 4})
    lines.append({"step": steps, "samples": {PROMPT: ["last words"]}})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Page(HTMLParser):
    """Checks that tags close in order, and collects addresses and data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")], "no handler in markup"
        names = ("src", "href", "xlink:href")
        self.addresses += [value or "" for name, value in attrs if name in names]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def report(*arguments: object) -> None:
    main(["report", *map(str, arguments)])


@pytest.mark.parametrize("data", [("pydocs",), ("./pydocs",)])
def test_the_page_of_one_run(tmp_path: Path, capsys: Capture, data: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "runs" / "small", prompts=(HOSTILE,), data=data)
    report(run)
    names = sorted(path.name for path in run.glob("report*"))
    assert names == ["report-loss.png", "report-training.png", "report.html"]
    assert sorted(capsys.readouterr().out.split()) == [str(run / name) for name in names]
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [found for found in page.addresses if not found.startswith("#")] == []
    assert "script" not in page.tags
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in text
    assert HOSTILE not in text
    assert "alert(1)&lt;/script&gt;" in text
    found = charts([read_history(run)])
    drawn = {curve.name: curve.points for chart in found for curve in chart.curves}
    assert drawn["validation, last 6.000"] == [(20, 7.0), (40, 6.0)]
    quick = [(10, 8.0), (20, 7.5), (30, 7.0), (40, 6.5)]
    assert drawn["validation, 4 of its tokens"] == quick
    note = "36,059 tokens that are not trained on, on the way 4 of them"
    assert note in text
    assert ("last tenth are modules" in text) == (data == ("pydocs",))
    assert drawn["learning rate"][0] == (1, 0.001)
    assert drawn["val nats per character"] == [(20, 1.8), (40, 1.6)]
    assert len(found) == text.count("<svg") == 6
    for chart in found:
        assert chart.title in text
        assert all(f"</i>{curve.name}</span>" in text for curve in chart.legend)
    for expected in (
        *(
            "nanoGPT, CPU (measured for this project): 1.886",
            "6.0000 (step 40)",
            "Published figures",
        ),
        *("one\ntwo", "last words", "after 40 steps", "optimizer.betas"),
    ):
        assert expected in text, expected
    assert (run / names[0]).read_bytes().startswith(b"\x89PNG")


def test_the_loss_is_drawn_from_its_first_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    chart, close = text.split("</svg>")[:2]
    lines = drawn_lines(chart)
    assert len(lines) == 4
    heights = [y for line in lines for _, y in line]
    assert len(heights) > 80
    left, top, right, bottom = frame_of(chart)
    assert top < min(heights) < max(heights) < bottom, "nothing leaves the frame"
    assert left < lines[0][0][0] < left + (right - left) / 20, "from the first step"
    (level,) = re.findall(r' y="([\d.]+)"[^>]*>(ln 50257[^<]*)<', chart)
    assert level[1] == "ln 50257, all tokens equally likely: 10.8249"
    assert top < float(level[0]) < min(heights), "the first loss, 9.9, is below what guessing costs"
    assert "ln 50257" not in close
    assert min(y for line in drawn_lines(close) for _, y in line) < frame_of(close)[1], "cut off"


def drawn_lines(markup: str) -> list[list[tuple[float, float]]]:
    """The places of each curve of an SVG: the clipped paths that are no grid line or level."""
    found = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="[^"]*stroke: (#\w+)', markup)
    paths = [path for path, color in found if color not in ("#e9edf1", "#8a94a0")]
    pairs = [re.findall(r"([\d.-]+) ([\d.-]+)", path) for path in paths]
    return [[(float(x), float(y)) for x, y in pair] for pair in pairs]


def frame_of(markup: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what curves are clipped to."""
    (found,) = re.findall(r"<clipPath.*?<rect ([^>]*)/>", markup, re.DOTALL)
    left, top, width, height = map(float, re.findall(r'"([\d.]+)"', found))
    return left, top, left + width, top + height


def test_a_single_validation_is_a_figure_and_no_chart(tmp_path: Path) -> None:
    def page(name: str, **made: Any) -> str:
        report(make_run(tmp_path / name, **made))
        return (tmp_path / name / "report.html").read_text(encoding="utf-8")

    title = "Validation, nats per character <span>"
    once = page("once", steps=20, fingerprint="ab")
    assert title not in once
    assert '<td class="number">1.8000</td>' in once
    assert title in page("twice", steps=40, fingerprint="ab")
    assert title in page("published", steps=20), "one point beside published lines says something"


def test_the_same_page_every_time(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    report(run, "--out", tmp_path / "a" / "page.html")
    report(run, "--out", tmp_path / "b" / "page.html")
    assert (tmp_path / "a" / "page.html").read_bytes() == (
        tmp_path / "b" / "page.html"
    ).read_bytes()


def test_several_runs_are_compared(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", lr=1e-3)
    second = make_run(tmp_path / "second", steps=60, lr=2e-3)
    report(first, second, "--out", tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    Page(text)
    differing = text.split("<h2>What differs</h2>")[1].split("</table>")[0]
    names = re.findall(r"<tr><td>([^<]*)</td>", differing)
    assert names == ["lr", "steps"]
    assert "<td>0.001</td><td>0.002</td>" in differing
    for name in ("first, training, smoothed", "second, validation"):
        assert name in text


def test_runs_of_other_batches_are_drawn_over_tokens(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    lines = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "tokens" in line:
            line["tokens"] *= 2
    (second / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report(first, second, "--out", tmp_path / "both.html")
    Page((tmp_path / "both.html").read_text(encoding="utf-8"))
    loss = charts([read_history(first), read_history(second)])[0]
    ends = {curve.name: curve.points[-1][0] for curve in loss.curves}
    assert loss.x_name == "tokens"
    assert ends["first, validation, last 6.000"] == 40 * 128
    assert ends["second, validation, last 6.000"] == 2 * 40 * 128


@pytest.mark.parametrize(
    ("ruin", "kept", "said"),
    [
        (lambda data: data[:-9], 47, r"1 line dropped that are not whole \(line 48\)"),
        (lambda data: data.replace(b'{"step": 2,', b'\x00\xff{"', 1), 47, r"\(line 3\)"),
        (
            lambda data: b"[1]\n" * 7 + data,
            48,
            r"7 lines dropped .* \(line 1, 2, 3, 4, 5, \.\.\.\)",
        ),
        (lambda data: data + b"\n\n", 48, None),
    ],
    ids=["killed", "damaged", "foreign", "blank"],
)
def test_half_written_metrics(
    tmp_path: Path, ruin: Any, kept: int, said: str | None, capsys: Capture
) -> None:
    run = make_run(tmp_path / "run")
    path = run / "metrics.jsonl"
    path.write_bytes(ruin(path.read_bytes()))
    entries, notes = RunDirectory(run).read_metrics()
    assert len(entries) == kept
    assert bool(notes) == (said is not None)
    if said is not None:
        assert re.search(said, notes[0])
        report(run)
        assert re.search(said, capsys.readouterr().out)
        assert re.search(said, (run / "report.html").read_text(encoding="utf-8"))


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    history = read_history(run)
    assert history.samples == [
        (0, {PROMPT: ["one\ntwo", HOSTILE]}),
        (40, {PROMPT: ["last words"]}),
    ]
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "samples": 7}\n{"step": 2, "samples": {"a": "b"}}\n{"step": 3, "loss": 1}\n'
    )
    damaged = read_history(run)
    assert damaged.samples == []
    assert "2 lines dropped" in damaged.notes[0]


def test_references_belong_to_their_text(tmp_path: Path) -> None:
    runs = 0

    def found(unit: Any, **made: Any) -> set[float]:
        nonlocal runs
        runs += 1
        run = read_history(make_run(tmp_path / f"run-{runs}", **made))
        return {reference.value for reference in find_references([run], unit)}

    edu = ("data/fineweb-edu",)
    assert found("val_loss", preset="gpt2-124m", data=edu, fingerprint="ab") == {3.2924, 3.397}
    assert found("val_nats_per_character", data=("a.txt",)) == {1.886, 1.4697}
    assert found("val_nats_per_character", validation_tokens=7) == set(), "another part of it"
    assert found("val_nats_per_character", fingerprint="ab") == set()
    reading_it = {name for name, make in PRESETS.items() if make().data == EDU.data}
    assert reading_it == set(EDU.presets)
    assert all(reference.source and reference.text.name for reference in REFERENCES)


@pytest.mark.parametrize(
    "data",
    ["reduced.txt", "/home/edu/corpus", "fineweb-edu", "data/fineweb", "my-shakespeare/input.txt"],
)
@pytest.mark.parametrize("preset", ["quickstart", "gpt2-124m"])
def test_a_name_in_a_path_is_no_corpus(tmp_path: Path, data: str, preset: str) -> None:
    run = make_run(tmp_path / "run", data=(data,), fingerprint="ab", preset=preset)
    history = read_history(run)
    assert find_references([history], "val_loss") == []
    assert find_references([history], "val_nats_per_character") == []


def test_charts_of_odd_curves() -> None:
    def drawn(**made: Any) -> str:
        curve = Curve(name="a", color="#ff0000", **made)
        return svg(Chart(title="t", curves=(curve,), x_name="x"), width=520, height=260)

    alone = drawn(points=[(3, 5.0)])
    dot = r"<use [^>]*fill: #ff0000"
    assert len(re.findall(dot, alone)) == 1
    assert not re.findall(dot, drawn(points=[(3, 5.0), (4, 5.0)]))
    assert "nan" not in alone
    assert "nan" not in drawn(points=[(0, 0), (1, 0)])
    with_errors = drawn(points=[(0, 0.3), (1, 0.4)], errors=(0.1, 0.0))
    assert any(
        first[0] == last[0] and abs(first[1] - last[1]) > 100  # 0.2 of a range of 0.2
        for first, *_, last in drawn_lines(with_errors)
    )
    many = [(float(i), float(i % 97)) for i in range(10_001)]
    few = thin(many)
    assert len(few) <= 602
    assert few == sorted(few)
    assert max(y for _, y in few) == 96
    assert few[-1] == many[-1]
    assert len(drawn(points=many)) < 40_000
    assert [short(x) for x in (1e-4, 1.5, 12_000, 3e6, 2e9)] == ["0.0001", "1.5", "12k", "3M", "2B"]


def test_names_are_text_in_pictures_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a $x_{ & <b>")
    other = make_run(tmp_path / "_hidden $")
    report(run, other, "--out", tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    Page(text)
    assert "</i>a $x_{ &amp; &lt;b&gt;, training, smoothed</span>" in text
    assert "</i>_hidden $, training, smoothed</span>" in text


def test_hellaswag_says_how_sure_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = [
        {"step": 20, "hellaswag_acc_norm": 0.28, "hellaswag_acc_norm_stderr": 0.01,
         "hellaswag_examples": 1000},
        {"step": 40, "hellaswag_acc_norm": 0.27, "hellaswag_examples": 1000},
    ]  # fmt: skip
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "HellaSwag acc_norm, the lecture&#39;s scoring" in text
    assert "1,000 examples, ± standard error" in text
    assert "0.2800 ± 0.0100" in text
    (chart,) = [chart for chart in charts([read_history(run)]) if "HellaSwag" in chart.title]
    assert chart.curves[0].errors == (0.01, 0.0)
    assert {level.name for level in chart.levels} == {"chance", "GPT-2 124M, lecture's scoring"}


def test_runs_are_listed(tmp_path: Path, capsys: Capture) -> None:
    make_run(tmp_path / "runs" / "good")
    bad = make_run(tmp_path / "runs" / "silent")
    (bad / "metrics.jsonl").write_text("")
    main(["runs", str(tmp_path / "runs")])
    out = capsys.readouterr().out
    assert re.search(r"good\s.*\s40\s+5\.12k\s+6\.0000\s+3\.0000\s+1\.6000\s+1,021", out)
    assert "silent has no metrics yet" in out
    main(["runs", str(tmp_path / "runs"), "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["val_loss"] for entry in found] == [6.0]
    assert found[0]["parameters"] == 124_439_808
    assert found[0]["best_step"] == 40


def test_bad_input(tmp_path: Path, capsys: Capture) -> None:
    silent = make_run(tmp_path / "silent")
    (silent / "metrics.jsonl").unlink()
    assert "silent has no metrics yet" in fails(capsys, "report", silent)
    assert "holds no run" in fails(capsys, "report", tmp_path)
    assert "name the directory of a run" in fails(capsys, "report")
    assert "not the name of an .html file" in fails(capsys, "report", silent, "--out", tmp_path)
    assert "no such folder" in fails(capsys, "runs", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "holds no runs" in fails(capsys, "runs", tmp_path / "empty")


PROBE = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(String(event.message)), true);
addEventListener("securitypolicyviolation", (event) => problems.push(event.blockedURI));
</script>"""
ASK = """<script>
document.body.dataset.found = JSON.stringify({
  problems, requests: performance.getEntriesByType("resource").map((entry) => entry.name),
  curves: [...document.querySelectorAll("svg path[clip-path]")].filter(
    (path) => path.style.strokeWidth == "1.6").map((path) => path.getBBox().width),
  wide: document.documentElement.scrollWidth, window: innerWidth,
});
</script>"""
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync"""


def test_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    run = make_run(tmp_path / "run", prompts=(HOSTILE,))
    report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(
        text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
        .replace("<title>", PROBE + "<title>", 1)
        .replace("</body>", ASK + "</body>"),
        encoding="utf-8",
    )
    done = subprocess.run(
        [browser, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=400,800", "--enable-logging=stderr", "--dump-dom", probed.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    attribute = re.search(r'data-found="([^"]*)"', done.stdout)
    assert attribute is not None, done.stderr
    found = json.loads(attribute[1].replace("&quot;", '"').replace("&amp;", "&"))
    assert found["problems"] == []
    assert found["requests"] == []
    assert len(found["curves"]) == 10
    assert all(width > 100 for width in found["curves"])
    assert found["wide"] <= found["window"], "nothing to scroll sideways on a phone"
