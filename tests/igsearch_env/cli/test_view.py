"""The page of rollouts: what it holds, and what it does when it cannot be made."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.cli.program import run
from igsearch_env.cli.view import main
from igsearch_env.episode import Episode, Question, Segment
from igsearch_env.record import episode_record
from igsearch_env.viewer.data import Shown, spread, view_data
from igsearch_env.viewer.page import page, write_page
from igsearch_env.viewer.saved_rollouts import SavedRollout

HOSTILE = "</script><script>"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def saved(folder: Path) -> list[dict[str, Any]]:
    return [line for path in sorted((folder / "rollouts").iterdir()) for line in lines(path)]


def evaluated(folder: Path, count: int, group: int = 1) -> Path:
    """An evaluation of some questions, each played a few times."""
    folder.mkdir(exist_ok=True)
    episodes = [
        Episode(Question(f"q{i // group}", "Where?", ("Lima",)), Segment("?", "system"))
        for i in range(count)
    ]
    records = (episode_record(replace(e, group_id=e.question.id)) for e in episodes)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "episodes.jsonl").write_text(text)
    return folder


def view(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["view", *words])
    with pytest.raises(SystemExit) as ended:
        run(main)
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_a_run_is_shown_as_it_was_saved(trained_run: Path) -> None:
    data = view_data(trained_run, 1000)
    records = saved(trained_run)
    assert data["kind"] == "training"
    assert data["total"] == len(data["rollouts"]) == len(records) == 3 * 4 * 3
    assert Counter(one["step"] for one in data["rollouts"]) == {1: 12, 2: 12, 3: 12}
    assert set(Counter(one["group"] for one in data["rollouts"]).values()) == {3}
    assert data["metrics"] == lines(trained_run / "metrics.jsonl")
    assert data["settings"]["optimization.group_size"] == "3"
    searches = 0
    for shown, record in zip(data["rollouts"], records, strict=True):
        episode = record["episode"]
        assert shown["question"] == episode["question"]["text"]
        assert (shown["em"], shown["answer"]) == (episode["em"], episode["answer"])
        flat: list[float] = []
        for step, one in zip(shown["steps"], episode["steps"], strict=True):
            assert step["turn"] == one["turn"]["text"]
            assert step["gain"] == one["information_gain"]
            assert len(step["advantages"]) == len(step["ends"]) == len(one["turn"]["token_ids"])
            texts = [data["documents"][found["at"]][2] for found in step["documents"]]
            assert texts == [document["text"] for document in one["documents"]]
            for other, evidence in zip(step["others"], one["counterfactuals"], strict=True):
                ids = [data["documents"][at][0] for at in other["documents"]]
                assert ids == [document["id"] for document in evidence["documents"]]
            flat += step["advantages"]
            searches += step["action"] == "search"
        assert flat == record["advantages"]
    assert searches > 20
    assert len({tuple(document) for document in data["documents"]}) == len(data["documents"])


def test_gold_passages_and_those_with_the_answer_are_told(hostile_run: Path) -> None:
    first, second = view_data(hostile_run, 10)["rollouts"][0]["steps"][0]["documents"]
    assert (first["gold"], first["answer"]) == (True, True)
    assert (second["gold"], second["answer"]) == (False, True)


def test_nothing_in_the_data_can_leave_its_block(hostile_run: Path) -> None:
    path, data = write_page(hostile_run)
    text = path.read_text(encoding="utf-8")
    assert HOSTILE in data["rollouts"][0]["question"]
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert "<" not in block
    assert json.loads(block) == json.loads(json.dumps(data))
    assert text.count("<script") == text.count("</script>") == 2
    assert HOSTILE not in text


def test_the_page_runs_its_own_script_and_loads_nothing(hostile_run: Path) -> None:
    text = write_page(hostile_run)[0].read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)

    def sha256(part: str) -> str:
        return base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()

    assert policy == (
        f"default-src 'none'; style-src 'sha256-{sha256(style)}'; "
        f"script-src 'sha256-{sha256(script)}'"
    )
    assert set(re.findall(r"https?://[^\"' ]+", style + script)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", script)


def test_a_name_is_escaped_and_never_filled_in_twice(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "a <b> {{data}}", 1)
    text = write_page(folder)[0].read_text(encoding="utf-8")
    assert f"<title>{html.escape(folder.name)} · rollouts</title>" in text


def test_what_is_not_finite_is_left_out(hostile_run: Path) -> None:
    first, _ = view_data(hostile_run, 10)["metrics"]
    assert first["loss"] is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        page({"name": "x", "value": float("nan")})


def test_of_too_many_whole_groups_at_even_distances_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluated(tmp_path / "eval", 40, group=4)
    assert view(monkeypatch, str(folder), "--limit", "13") == 0
    assert f"{folder / 'view.html'}: 12 rollouts of 40" in capsys.readouterr().out
    data = view_data(folder, 13)
    assert [one["id"] for one in data["rollouts"][::4]] == ["q0", "q3", "q6"]
    assert set(Counter(one["group"] for one in data["rollouts"]).values()) == {4}
    assert data["total"] == 40
    assert len(view_data(folder, 40)["rollouts"]) == 40


def test_a_group_larger_than_the_limit_is_shown_whole() -> None:
    episode = Episode(Question("q", "?", ("a",)), Segment("?", "system"), group_id="g")
    shown = [Shown(SavedRollout(episode, (), ()), 1)] * 5
    assert spread(shown, 2) == shown


def test_groups_of_two_steps_or_data_sets_are_not_one(tmp_path: Path) -> None:
    episode = Episode(Question("q", "?", ("a",), "nq"), Segment("?", "system"), group_id="g")
    other = replace(episode, question=replace(episode.question, dataset="popqa"))
    groups = {
        Shown(SavedRollout(one, (), ()), step).group for one in (episode, other) for step in (1, 2)
    }
    assert len(groups) == 4


def test_a_line_that_is_being_written_is_left_for_later(trained_run: Path, tmp_path: Path) -> None:
    text = (trained_run / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text[:-10])
    assert len(view_data(tmp_path, 10)["metrics"]) == text.count("\n") - 1
    assert view_data(tmp_path, 10)["rollouts"] == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "other.jsonl",
            "",
            "holds neither episodes.jsonl (of igsearch evaluate) nor metrics.jsonl",
        ),
        ("episodes.jsonl", "{}\n", "episodes.jsonl, line 1 is damaged (expected the record of"),
        ("episodes.jsonl", '{"a": \n', "episodes.jsonl, line 1 is damaged (Expecting value"),
        ("metrics.jsonl", "{}\nx\n", "metrics.jsonl, line 2 is damaged (Expecting value"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
    message: str,
) -> None:
    (tmp_path / name).write_text(text)
    assert view(monkeypatch, str(tmp_path)) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_damaged_rollouts_are_named(hostile_run: Path) -> None:
    settings = hostile_run / "config.json"
    before = settings.read_text()
    for damaged in ("{", "[]"):
        settings.write_text(damaged)
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            view_data(hostile_run, 10)
    settings.write_text(before)
    path = hostile_run / "rollouts" / "step-000001.jsonl"
    path.write_text(path.read_text().replace('"advantages"', '"advantage"'))
    with pytest.raises(ValueError, match=r"step-000001\.jsonl, line 1 is damaged.*token_ends"):
        view_data(hostile_run, 10)
