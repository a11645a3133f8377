"""`mrpo report`: the page and its pictures, without torch, the same twice, readable by everybody.

What a browser shows is tested in headless Chromium where there is one (`pip install -e .[browser]`,
and MRPO_CHROMIUM or a `chromium` on the path); the same properties are read from the file anywhere.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import made_up_run
from matplotlib.figure import Figure
from reference_changes import edit_json

from mrpo_tools.cli import run
from mrpo_tools.errors import UsageError
from mrpo_tools.report import curves
from mrpo_tools.report.canvas import chance_line
from mrpo_tools.report.curves import curve
from mrpo_tools.report.facts import cost_table, duration, runs_table
from mrpo_tools.report.palette import BOTH, contrast
from mrpo_tools.report.references import ranking_picture
from mrpo_tools.report.write import report
from mrpo_tools.runs.methods import by_method
from mrpo_tools.runs.read import LogEntry, read_results

ROOT = Path(__file__).parent.parent
THREE = ["llama", "mistral", "qwen"]
PICTURES = {
    "accuracy",
    "loss",
    "learning_rate",
    "margin",
    "choices",
    "logps",
    "weights",
    "clipping",
    "references",
}
HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("report") / "runs"
    for seed in range(2):
        made_up_run(root / f"dpo-{seed}", "dpo", ["llama"], seed)
        made_up_run(root / f"mrpo-{seed}", "mrpo", THREE, seed)
        made_up_run(root / f"fixed-{seed}", "mrpo", THREE, seed, trust_region="fixed",
                    lora_target_modules=[HOSTILE])  # fmt: skip
    return root


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("page") / "report"
    report([runs], output)
    return output


@pytest.fixture
def dpo(runs):
    """The method `dpo` of the runs, read anew."""
    return next(each for each in by_method(read_results([runs])) if each.loss == "dpo")


class Elements(HTMLParser):
    """Every start tag of a file with its attributes, its text, and the source of both."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def page(made) -> Elements:
    return Elements(made / "report.html")


def test_every_file_is_there(made):
    pictures = {f"{name}.png" for name in PICTURES}
    assert {path.name for path in made.iterdir()} == {"report.html", "report.md", *pictures}
    assert all((made / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_nothing_is_loaded_from_anywhere(page):
    attributes = [pair for _, of_tag in page.tags for pair in of_tag.items()]
    loading = ("src", "srcset", "action", "background", "poster", "data")
    loaded = [value for key, value in attributes if key in loading]
    assert len(loaded) == 2 * len(PICTURES)
    assert all(value.startswith("data:image/png;base64,") for value in loaded)
    assert not page.named("script", "link", "iframe", "object", "embed", "base")
    assert all(link["href"].startswith("#") for link in page.named("a"))
    assert not re.search(r"https?:|url\(|@import", page.source)
    policy = next(tag for tag in page.named("meta") if "http-equiv" in tag)["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_page_is_well_formed(page):
    """Ids and links, headings, cells and boxes; an alternative with numbers on every picture."""
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.named("a")} == set(ids)
    assert page.named("html")[0]["lang"] == "en"
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1"
    assert set(headings[1:]) == {"h2"}
    assert all(cell.get("scope") in ("row", "col") for cell in page.named("th"))
    for box in page.named("div"):
        if "scroll" in box.get("class", ""):
            assert box["tabindex"] == "0"
            assert box["aria-label"]
    alternatives = [image["alt"] for image in page.named("img")]
    assert len(alternatives) == len(set(alternatives)) == len(PICTURES)
    assert all(len(text) > 40 and re.search(r"\d", text) for text in alternatives)


def test_names_are_text(page):
    """A setting that looks like a script is shown, not run."""
    assert HOSTILE in page.text
    assert "<script" not in page.source


@pytest.mark.parametrize("palette", BOTH, ids=lambda palette: palette.name)
def test_contrast(palette):
    words = (palette.text, palette.quiet, palette.link)
    pairs = [(colour, behind) for colour in words for behind in (palette.background, palette.panel)]
    for colour, behind in (*pairs, *((line, palette.background) for line in palette.lines)):
        assert contrast(colour, behind) >= 4.5, (colour, behind)
    assert len(set(palette.lines)) == len(palette.lines)


def test_contrast_is_wcags():
    """White on black is 21; #767676 on white is 4.54, the known limit of grey."""
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.005)
    assert contrast("#ff0000", "#ffffff") == pytest.approx(4.00, abs=0.005)


def test_the_page_says_what_the_numbers_are(page):
    for words in (
        "not comparable between methods", "mean ± sample std", "always the longer", "qwen alone",
        "may fall although training goes well", "steps per second",
        "3 methods, 6 runs (2 seeds each), measured on 200 groups of split test",
    ):  # fmt: skip
        assert words in page.text, words


FIVE = [0.78, 0.79, 0.80, 0.81, 0.82]
VERDICTS = {
    # differences 0.09, 0.10, 0.11, 0.10, 0.10: mean 0.1, s 0.00707, t 31.6, 2.776·s/√5 = 0.0088
    "better": ((FIVE, [0.87, 0.89, 0.91, 0.91, 0.92]),
               "Better than every baseline: mrpo (+10.0 (+9.1 to +10.9), p <0.001, 5 seeds): mrpo "
               "90.0 ± 2.0 % by its own log-prob, dpo 80.0 ± 1.6 %."),
    "worse": (([0.87, 0.89, 0.91, 0.91, 0.92], FIVE),
              "Every method is worse than every baseline (-10.0 (-10.9 to -9.1), p <0.001, 5"),
    # differences ±0.01 and 0: t 0
    "as good": ((FIVE, [0.79, 0.78, 0.80, 0.82, 0.81]),
                "No method is shown to be better than every baseline (+0.0 (-1.2 to +1.2), p 1"),
    "two seeds": (([0.79, 0.81], [0.89, 0.92]),
                  "2 seeds cannot say whether any method is better, 5 can: mrpo 90.5 ± 2.1 % by"),
    "one method": (([0.80], []),
                   "dpo 80.0 % by its own log-prob; there is nothing to compare it with."),
    "no baseline": (([], [0.80, 0.82]), "mrpo 81.0 ± 1.4 % by its own log-prob"),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict_comes_first(case, tmp_path):
    (baseline, method), expected = VERDICTS[case]
    for loss, refs, values in (("dpo", ["llama"], baseline), ("mrpo", THREE, method)):
        for seed, value in enumerate(values):
            path = made_up_run(tmp_path / f"runs/{loss}-{seed}", loss, refs, seed)
            edit_json(path / "evaluation/test.json", accuracies_logp=value)
    report([tmp_path / "runs"], tmp_path / "out")
    lines = (tmp_path / "out" / "report.md").read_text(encoding="utf-8").splitlines()
    assert expected in lines[2]
    assert lines[0] == "# Runs compared"
    assert lines[1] == ""


def test_what_was_run_is_said(made):
    """From the files of the runs: the values that `made_up_run` wrote, or a recipe's defaults."""
    text = (made / "report.md").read_text(encoding="utf-8")
    for line in (
        "| data set | data/toy.jsonl |", "| trained on | 600 groups of split train |",
        "| policy | models/llama |", "| references | llama, llama + mistral + qwen |",
        "| date | 2026-01-02 |", "| versions | mrpo-tools 0.1.0 · torch 2.9 |",
        "| learning_rate | 1e-05 |", "| seed | 0, 1 |",
        "| command | mrpo train --config RUN/recipe.yaml --output DIR |",
    ):  # fmt: skip
        assert line in text, line


def test_each_run_has_its_intervals_and_groups(runs):
    rows = runs_table(by_method(read_results([runs]))).rows
    assert len(rows) == 6
    evaluation = read_results([runs / "dpo-0"])[0].evaluation
    low, high = evaluation.intervals.accuracies
    own = f"{100 * evaluation.accuracies:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    per_token = f"{100 * evaluation.accuracies_logp_per_token:.1f}"
    assert rows[0][:3] == ["dpo", "0", "200"]
    assert rows[0][5] == per_token
    assert rows[0][-1] == own


def test_what_is_not_comparable_comes_last(page):
    """Of the columns, the own reward; of the pictures, its accuracy over training."""
    places = [page.text.index(words) for words in ("Accuracy", "Each run", "Loss over training")]
    assert places == sorted(places)
    titles = re.findall(r'<th scope="col">([^<]+)</th>', page.source)
    assert titles[:11] == ["method", "seeds", "log-prob", "difference", "p", "d", "per token",
                           "vs reference 1", "margin", "own, untrained", "own reward"]  # fmt: skip
    pictures = re.findall(r'<section aria-labelledby="(\w+)">\n<h2[^\n]*\n<figure>', page.source)
    assert set(pictures) == PICTURES
    assert pictures[-1] == "accuracy"


def test_a_second_report_has_the_same_bytes_without_torch(runs, made, tmp_path, blocked):
    """From another directory, in a process in which torch cannot be imported."""
    command = [sys.executable, "-m", "mrpo_tools", "report", str(runs), "--output", "again"]
    subprocess.run(command, check=True, env=blocked, cwd=tmp_path, capture_output=True)
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (made, tmp_path / "again")
    )
    assert first == second


def test_curves_are_means_over_seeds(dpo):
    """At each step, the mean and sample deviation of the two seeds' logs; where both have one."""
    line = curve(dpo, "rewards/margins")
    logs = [
        {entry.step: entry.values["rewards/margins"] for entry in result.history}
        for result in dpo.runs
    ]
    assert line.steps == list(range(10, 101, 10))
    for step, mean, std in zip(line.steps, line.means, line.stds, strict=True):
        values = [log[step] for log in logs]
        assert (mean, std) == pytest.approx((statistics.fmean(values), statistics.stdev(values)))
    assert curve(dpo, "no such number") is None
    del dpo.runs[0].history[3:5]
    assert curve(dpo, "loss").steps == [10, 20, 30, 60, 70, 80, 90, 100]


def test_held_out_curves_come_before_those_of_the_training_batches(tmp_path):
    """Runs that measured a split while training are drawn by it, and the words say which."""
    for seed in range(2):
        made_up_run(tmp_path / f"runs/{seed}", "mrpo", THREE, seed, eval_split="dev")
    methods = by_method(read_results([tmp_path / "runs"]))
    for picture, name in (
        (curves.accuracy_picture, "rewards/accuracies"), (curves.logps_picture, "logps/chosen"),
    ):  # fmt: skip
        assert "the training batches" in picture(methods).text
        for result in methods[0].runs:
            result.history.extend(
                LogEntry(step, {f"eval_{other}": 0.125 * step})
                for step in (0, 4)
                for other in (name, "logps/rejected")
            )
        drawn = picture(methods)
        assert "split dev" in drawn.text
        assert "the training batches" not in drawn.text
        assert "0.5" in drawn.alt
        assert curves.measured(methods, name)[0][0].steps == [0, 4]


def test_a_tie_at_step_0_is_not_drawn(dpo):
    """Margin 0 and accuracy 0 are a policy that is its reference; 0 with a margin is a 0."""
    for result in dpo.runs:
        result.history[:] = [
            LogEntry(step, {"rewards/accuracies": accuracy, "rewards/margins": margin})
            for step, accuracy, margin in [(0, 0.0, 0.0), (1, 0.0, -0.5), (2, 0.75, 0.5)]
        ]
    drawn = curve(dpo, "rewards/accuracies")
    assert (drawn.steps, drawn.means) == ([1, 2], [0.0, 0.75])
    assert curve(dpo, "rewards/margins").steps == [0, 1, 2]


def test_a_chance_line_is_drawn(dpo):
    """At one half, across the chart, in both pictures of preference accuracies."""
    for picture in (curves.accuracy_picture, ranking_picture):
        assert "dotted line is chance" in picture([dpo]).text
    chart = Figure().subplots()
    chance_line(chart.axhline, BOTH[0])
    assert [set(line.get_ydata()) for line in chart.lines] == [{0.5}]


def test_a_policy_that_hardly_moved_is_told(runs, tmp_path, capsys):
    """On the page, by its method, and on stderr by its run; not one that moved."""
    for name, moved in (("dpo-0", 0.0004), ("mrpo-0", 0.2)):
        path = shutil.copytree(runs / name, tmp_path / "runs" / name)
        edit_json(path / "evaluation/test.json", moved_nats_per_token=moved)
    report([tmp_path / "runs"], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "Hardly moved from the untrained policy (less than 0.003 nats a token): dpo." in text
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert "dpo-0: the policy hardly moved: 0.0004 nats a token" in warnings[0]


def test_one_seed_has_no_deviation(tmp_path):
    """No ± and no band of width zero, in pictures and in their alternatives."""
    for epsilon in (0.1, 1.0):
        made_up_run(tmp_path / "runs" / str(epsilon), "mrpo", THREE, 0, epsilon_max=epsilon)
    methods = by_method(read_results([tmp_path / "runs"]))
    assert curve(methods[0], "loss").stds is None
    report([tmp_path / "runs"], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"\d ± \d", text)
    assert "ε=0.1 0.7" in text  # the value itself is there


def test_many_methods_show_every_loss(tmp_path):
    """Of 14 methods of two losses, ten lines: both of dpo, and the first eight of mrpo."""
    for index in range(12):
        made_up_run(tmp_path / f"m{index}", "mrpo", THREE, 0, epsilon_max=float(index))
    for name in THREE[:2]:
        made_up_run(tmp_path / name, "dpo", [name], 0)
    methods = by_method(read_results([tmp_path]))
    labels = [line.label for line in curves.curves(methods, "loss")]
    assert labels == ["dpo llama", "dpo mistral", *(f"mrpo ε={index}" for index in range(8))]
    report([tmp_path], tmp_path / "out")
    assert "10 of 14 methods are drawn" in (tmp_path / "out" / "report.html").read_text()


def test_costs(runs):
    """Speed is steps over seconds; precompute is the sum over the method's references."""
    methods = by_method(read_results([runs]))
    rows = {row[0]: row[1:] for row in cost_table(methods).rows}
    for method in methods:
        speeds = sorted(100 / result.metrics.train_seconds for result in method.runs)
        low, high = (f"{speed:.2f}" for speed in (speeds[0], speeds[-1]))
        assert rows[method.label][2] == (low if low == high else f"{low} to {high}")
    assert rows["dpo"][0] == "30 s"
    assert [rows[label][0] for label in rows if label != "dpo"] == ["1.6 min"] * 2  # 30 + 31 + 32 s
    assert [duration(s) for s in (4.25, 59, 90, 5400)] == ["4.2 s", "59 s", "1.5 min", "1.50 h"]


def test_what_cannot_be_drawn_is_said(tmp_path):
    path = made_up_run(tmp_path / "only", "dpo", ["llama"], 0)
    (path / "trainer_state.json").unlink()
    report([path], tmp_path / "out")
    text = Elements(tmp_path / "out" / "report.html").text
    assert "no run has a log of training" in text
    assert "no method has several references" in text
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"references.png"}


def test_the_command(runs, tmp_path, capsys):
    assert run(["report", str(runs), "--output", str(tmp_path / "out")]) == 0
    assert f"wrote {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out
    (tmp_path / "file").write_text("mine")
    assert run(["report", str(runs), "--output", str(tmp_path / "file")]) == 2
    with pytest.raises(UsageError, match="is not there"):
        report([tmp_path / "nowhere"], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_committed_example_is_whole():
    """Every picture it names is there, and nothing else; small enough for a repository."""
    folder = ROOT / "docs" / "example_report"
    pages = sorted(folder.rglob("*.md"))
    named = {
        (page.parent / link).resolve()
        for page in pages
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        if not link.startswith("http")
    }
    files = {path.resolve() for path in folder.rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix == ".png"} <= named
    assert all(path.exists() for path in named)
    assert sum(path.stat().st_size for path in files) < 1.5e6
    assert "](frontier.png)" in (folder / "report.md").read_text(encoding="utf-8")


CONTRASTS = """
() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const lum = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255;
    return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [lum(parse(getComputedStyle(e).color)), lum(behind(e))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), e.tagName + ': ' + e.textContent.trim().slice(0, 40)]);
  }
  return found;
}
"""
OUTSIDE = """
() => [...document.querySelectorAll('body *')].filter(e => !e.parentElement.closest('.scroll')
    && e.tagName !== 'SOURCE' && e.tagName !== 'PICTURE'
    && (e.getBoundingClientRect().right > innerWidth + .5 || e.getBoundingClientRect().left < -.5))
    .map(e => e.tagName + ' ' + e.className)
"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    binary = os.environ.get("MRPO_CHROMIUM") or shutil.which("chromium")
    if not binary:
        pytest.skip("no Chromium: set MRPO_CHROMIUM to its path")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser(browser, made, width, scheme):
    """Nothing overflows, contrasts of 4.5, an alternative on every picture, and no request."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    tab = context.new_page()
    requests, problems = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: problems.append(message.text))
    address = (made / "report.html").as_uri()
    tab.goto(address)
    assert [url for url in requests if not url.startswith("data:")] == [address]
    assert problems == []
    wide, room = tab.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room
    assert tab.evaluate(OUTSIDE) == []
    contrasts = tab.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert [text for ratio, text in contrasts if ratio < 4.5] == []
    images = tab.evaluate(
        "[...document.images].map(i => [i.alt, i.naturalWidth, i.currentSrc === i.src])"
    )
    assert len(images) == len(PICTURES)
    assert all(alt and size == 840 for alt, size, _ in images)
    assert {is_light for *_, is_light in images} == {scheme == "light"}
    context.close()
