"""The page of rollouts, opened in a browser and clicked through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igsearch_env import (
    PROTOCOLS,
    Episode,
    OutcomeFailedError,
    SearchQAEnv,
    WeightedOutcome,
)
from igsearch_env.outcome import Component
from igsearch_env.record import episode_record
from igsearch_env.settings import make_engine
from igsearch_env.viewer.page import write_page
from tests.igsearch_env.cli.hostile import HOSTILE
from tests.igsearch_env.fakes import PERU, QUESTIONS, FakeRetriever, FakeScorer

SIZES = {"laptop": (1280, 800), "phone": (390, 844)}


class Opened:
    """A page, and what went wrong in it."""

    def __init__(self, tab: Any) -> None:
        self.tab = tab
        self.errors: list[str] = []
        self.asked: list[str] = []
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("console", lambda message: self.errors.append(message.text))
        tab.on("request", lambda request: self.asked.append(request.url))

    def open(self, folder: Path) -> Any:
        self.tab.goto(write_page(folder)[0].as_uri())
        return self.tab

    def gains(self, place: str) -> list[float]:
        """The gains that stand in a part of the page, at full precision."""
        values = self.tab.eval_on_selector_all(place, "all => all.map(e => e.value)")
        return [float(value) for value in values]

    def click(self, place: str, view: str) -> None:
        """Follow a link, and wait for the view that it leads to."""
        self.tab.click(place)
        self.tab.wait_for_selector(view)


@pytest.fixture(params=SIZES)
def opened(browser: Any, request: pytest.FixtureRequest) -> Iterator[Opened]:
    width, height = SIZES[request.param]
    tab = browser.new_page(viewport={"width": width, "height": height})
    found = Opened(tab)
    yield found
    assert found.errors == []
    assert all(url.startswith("file:") for url in found.asked)
    assert len(found.asked) == 1
    tab.close()


def episodes(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "rollouts").iterdir())
    return [json.loads(line)["episode"] for file in files for line in file.open()]


def gains(episode: dict[str, Any]) -> list[float]:
    return [
        step["information_gain"]
        for step in episode["steps"]
        if step["action"] == "search" and step["information_gain"] is not None
    ]


def fits(tab: Any) -> bool:
    fit: bool = tab.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    return fit


def test_from_the_list_to_a_rollout_to_its_group(opened: Opened, trained_run: Path) -> None:
    tab = opened.open(trained_run)
    every = episodes(trained_run)
    place = next(i for i, episode in enumerate(every) if len(gains(episode)) > 1)
    means = [sum(g) / len(g) for e in every if (g := gains(e))]
    assert opened.gains(".row data") == pytest.approx(means, abs=1e-12)
    assert fits(tab)
    opened.click(f".rows li:nth-child({place + 1}) a", ".rollout")
    assert tab.inner_text("h1") == every[place]["question"]["text"]
    assert opened.gains(".worth data") == gains(every[place])
    assert opened.gains(".gain-block data") == gains(every[place])
    baselines = [
        value for step in every[place]["steps"] for value in step["baseline_log_probs"] or ()
    ]
    tab.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    assert opened.gains(".others data") == baselines
    assert fits(tab)
    opened.click(".to-group", ".group")
    group = [e for e in every if e["group_id"] == every[place]["group_id"]]
    assert tab.locator(".column").count() == len(group) == 3
    assert opened.gains(".cell-head data") == [gain for episode in group for gain in gains(episode)]
    assert fits(tab)
    opened.click(".column:nth-child(2) .head", ".rollout")
    assert opened.gains(".worth data") == gains(group[1])
    tab.go_back()
    tab.wait_for_selector(".group")
    assert tab.locator(".column").count() == 3


def test_curves(opened: Opened, trained_run: Path) -> None:
    tab = opened.open(trained_run)
    opened.click("#nav a:nth-child(2)", ".curves")
    rows = [json.loads(line) for line in (trained_run / "metrics.jsonl").open()]
    label = tab.get_attribute('[data-series="loss"] .plot', "aria-label")
    assert label.startswith("loss: ")
    assert label.endswith(f"at step {len(rows)}")
    points = tab.get_attribute('[data-series="loss"] .raw', "points").split()
    heights = [float(point.split(",")[1]) for point in points]
    losses = [row["loss"] for row in rows]
    assert heights.index(min(heights)) == losses.index(max(losses))
    tab.focus('[data-series="loss"] .plot')
    tab.keyboard.press("ArrowLeft")
    assert tab.inner_text('[data-series="loss"] .readout').startswith("step 2: ")
    assert fits(tab)
    opened.click(".note a:text-is('3')", ".list")
    assert tab.locator(".row").count() == 12


def test_filters(opened: Opened, trained_run: Path) -> None:
    tab = opened.open(trained_run)
    every = episodes(trained_run)

    def expect(count: int) -> None:
        assert tab.inner_text(".summary dd >> nth=0") == str(count)
        assert tab.locator(".row").count() == min(count, 50)

    expect(len(every))
    right = sum(episode["em"] == 1 for episode in every)
    if 0 < right < len(every):
        tab.select_option("#verdict", "right")
        expect(right)
        tab.click("[type=reset]")
    tab.select_option("#hops", "2")
    expect(sum(episode["question"]["hops"] == 2 for episode in every))
    tab.click("[type=reset]")
    tab.select_option("#step", "2")
    expect(12)
    tab.click("[type=reset]")
    middle = sorted(gain for episode in every for gain in gains(episode))[len(every) // 2]
    tab.fill("[aria-label='information gain from']", str(middle))
    expect(sum(any(gain >= middle for gain in gains(episode)) for episode in every))
    tab.fill("[aria-label='information gain to']", str(middle))
    expect(sum(middle in gains(episode) for episode in every))
    tab.click("[type=reset]")
    word = every[0]["question"]["text"].split()[-2].upper()
    tab.fill("#search", word)
    expect(sum(word.lower() in json.dumps(_searched(episode)).lower() for episode in every))
    tab.fill("#search", "no such words")
    assert tab.inner_text(".empty") == "No rollout passes these filters."
    tab.click("[type=reset]")
    tab.select_option("#order", "best")
    shown = opened.gains(".row data")
    assert shown == sorted(shown, reverse=True)


def _searched(episode: dict[str, Any]) -> list[Any]:
    question = episode["question"]
    return [question["text"], question["golden_answers"], question["id"], episode["answer"]]


def test_keys(opened: Opened, trained_run: Path) -> None:
    tab = opened.open(trained_run)
    every = episodes(trained_run)
    tab.focus(".row")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".rollout")
    assert opened.gains(".worth data") == gains(every[0])
    tab.keyboard.press("j")
    tab.keyboard.press("j")
    tab.keyboard.press("k")
    assert tab.inner_text(".path .place") == f"2 of {len(every)}"
    assert opened.gains(".worth data") == gains(every[1])
    tab.keyboard.press("g")
    assert tab.locator(".column").count() == 3
    tab.keyboard.press("Escape")
    assert tab.locator(".row").count() == len(every)
    tab.keyboard.press("/")
    tab.keyboard.type("j")
    assert tab.input_value("#search") == "j"


def test_text_is_shown_never_run(opened: Opened, hostile_run: Path) -> None:
    tab = opened.open(hostile_run)
    seen = [tab.inner_text("main")]
    for address in ("#/rollout/0", "#/group/0", "#/curves"):
        tab.evaluate("address => { location.hash = address; }", address)
        tab.wait_for_selector(f"main > .{address.split('/')[1]}")
        tab.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
        seen.append(tab.inner_text("main"))
        assert fits(tab)
    tab.evaluate("location.hash = '#/rollout/0'")
    tab.wait_for_selector(".rollout")
    tab.click("text=Transcript")
    seen.append(tab.text_content(".transcript"))
    assert all(HOSTILE in text for text in seen)
    assert seen[-1].count(HOSTILE) == 5  # prompt, documents, a turn, correction, reflection
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("img").count() == 0
    assert tab.locator("script").count() == 2


def test_tokens_are_shaded_where_they_stand(opened: Opened, hostile_run: Path) -> None:
    tab = opened.open(hostile_run)
    opened.click(".row", ".rollout")
    shown = tab.eval_on_selector_all(
        ".turn:first-of-type .token",
        "all => all.map(e => [e.textContent, e.title, e.classList.contains('query')])",
    )
    turn = "🙂 é <search> Lima 🙂 </search>"
    assert "".join(text for text, *_ in shown) == turn
    assert "".join(text for text, _, query in shown if query) == " Lima 🙂 "
    last_byte = 0
    for text, title, _ in shown:  # a token is a byte, its advantage half its place, less one
        last_byte += len(text.encode())
        value = (last_byte - 1) / 2 - 1
        assert len(text) == 1
        assert title == f"advantage {value:+.3f}".replace("-", "−").replace("+0.000", "0.000")
    words = tab.inner_text(".words >> nth=0")
    query = range(len("🙂 é <search>".encode()), len("🙂 é <search> Lima 🙂 ".encode()))
    assert f"{sum(i / 2 - 1 for i in query) / len(query):+.2f} on the query" in words


def test_pages_of_a_long_list(opened: Opened, trained_run: Path, tmp_path: Path) -> None:
    records = [json.dumps(episode) + "\n" for episode in episodes(trained_run)] * 4
    (tmp_path / "episodes.jsonl").write_text("".join(records))
    tab = opened.open(tmp_path)
    assert tab.locator(".row").count() == 50
    assert tab.is_disabled("text=← Previous")
    tab.click("text=Next →")
    assert tab.inner_text(".pages span") == f"page 2 of {-(-len(records) // 50)}"
    href = tab.get_attribute(".row >> nth=0", "href")
    assert href == "#/rollout/50"
    tab.evaluate("new Promise(done => { onscrollend = done; scrollTo(0, 600); })")
    tab.eval_on_selector_all(".row", "all => all[9].click()")
    tab.wait_for_selector(".rollout")
    assert tab.evaluate("scrollY") == 0
    tab.go_back()
    tab.wait_for_selector(".list")
    assert tab.get_attribute(".row >> nth=0", "href") == href
    assert tab.evaluate("scrollY") == 600


def test_the_colours_can_be_chosen(opened: Opened, hostile_run: Path) -> None:
    tab = opened.open(hostile_run)
    paper = "getComputedStyle(document.body).backgroundColor"
    colours = []
    for _ in range(3):
        tab.click("#theme")
        colours.append(tab.evaluate(paper))
    assert colours[0] != colours[1]
    assert tab.evaluate("document.documentElement.dataset.theme") == ""


def test_the_parts_of_an_outcome_are_shown(opened: Opened, tmp_path: Path) -> None:
    judged = WeightedOutcome(
        {"em": 1.0, "searches": -0.05, "gold_titles": 0.5, "judge": 1.0},
        {"judge": Component(no_verdict)},
    )
    env = SearchQAEnv(QUESTIONS, FakeRetriever(), None, num_counterfactuals=0, outcome=judged)
    env.reset(options={"question": PERU})
    env.step("<search> Peru </search>")
    env.step("<answer> Lima </answer>")
    (tmp_path / "episodes.jsonl").write_text(json.dumps(episode_record(env.episode)) + "\n")
    tab = opened.open(tmp_path)
    tab.goto(f"{tab.url.partition('#')[0]}#/rollout/0")
    tab.wait_for_selector(".outcome .part")
    shown = tab.eval_on_selector_all(".outcome .part", "all => all.map(e => e.textContent)")
    assert [text.split(" ")[0] for text in shown[:4]] == ["em", "searches", "gold_titles", "judge"]
    assert shown[2:] == [
        "gold_titles does not apply",
        "judge failed",
        "the score could not be had",
    ]
    assert "0.05" in shown[1]


def no_verdict(episode: Episode) -> float:
    raise OutcomeFailedError("no verdict")


def test_turns_of_several_calls_and_tools(opened: Opened, tmp_path: Path) -> None:
    protocol = replace(PROTOCOLS["refine"], name="several", max_calls=3, tools=("calculator",))
    engine = make_engine(
        QUESTIONS,
        FakeRetriever(),
        FakeScorer(),
        protocol=protocol,
        document_tokens=4,
        num_counterfactuals=1,
    )
    episode = engine.rules.begin(PERU)
    turns = (
        "<search>Peru</search><search>Italy</search><calculator>6 * 7</calculator>",
        "<answer>Lima</answer>",
    )
    for turn in turns:
        ((episode, _),) = engine.step([episode], [turn])
    (tmp_path / "episodes.jsonl").write_text(json.dumps(episode_record(episode)) + "\n")
    tab = opened.open(tmp_path)
    opened.click(".rows li a", ".rollout")
    assert tab.locator("section.turn h2").all_inner_texts() == [
        "Search 1 turn 1",
        "Search 2 turn 1, call 2",
        "Call of calculator turn 1, call 3",
        "Answer turn 2",
    ]
    assert "cut to the budget of tokens per document" in tab.inner_text("#search-0")
    assert opened.gains(".gain-block data") == list(episode.information_gains)
    tab.click("text=Transcript")
    tab.wait_for_selector(".transcript")
    assert tab.inner_text(".transcript") == "".join(s.text for s in episode.transcript).strip()
    assert fits(tab)
