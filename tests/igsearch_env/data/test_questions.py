import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from igsearch_env.data.questions import BUILTIN_QUESTIONS, load_questions
from igsearch_env.episode import Question

LIMA = {"question": "Capital of Peru?", "golden_answers": ["Lima"]}
ROME = {"question": "Capital of Italy?", "golden_answers": "Rome"}


def write(path: Path, *rows: Any) -> Path:
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz", "set.parquet"])
def test_every_field_is_read_from_every_kind_of_file(tmp_path: Path, name: str) -> None:
    full = {
        "id": "q7",
        "question": "Who?",
        "golden_answers": ["A", "B"],
        "dataset": "quiz",
        "hops": 2,
        "gold_ids": ["d1", "d2"],
        "gold_titles": ["T", "T"],
        "other": 1.5,
    }
    bare = {**dict.fromkeys(full), "question": "What?", "golden_answers": ["C"]}
    path = tmp_path / name
    write_parquet(path, [full, bare]) if path.suffix == ".parquet" else write(path, full, bare)
    assert load_questions(path) == [
        Question("q7", "Who?", ("A", "B"), "quiz", 2, ("d1", "d2"), ("T", "T")),
        Question("set-1", "What?", ("C",), "set"),
    ]


def test_one_answer_may_be_a_string_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.b.jsonl", "\ufeff", LIMA, "\n", ROME, "\n")
    lima, rome = load_questions(str(path))
    assert (lima.id, rome.id) == ("a.b-0", "a.b-1")
    assert rome.golden_answers == ("Rome",)


def test_the_number_of_questions_can_be_limited(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", LIMA, ROME, "not read")
    assert [q.text for q in load_questions(path, limit=1)] == ["Capital of Peru?"]
    assert len(load_questions(path, limit=2)) == 2
    with pytest.raises(ValueError, match="at least 1"):
        load_questions(path, limit=0)


@pytest.mark.parametrize("holder", ["split", "extra_info"])
def test_a_split_of_a_file_keeps_row_numbers(tmp_path: Path, holder: str) -> None:
    def row(split: str) -> dict[str, Any]:
        return {**LIMA, holder: split if holder == "split" else {"split": split, "index": 0}}

    path = write(tmp_path / "set.jsonl", row("train"), row("test"), row("train"))
    assert [q.id for q in load_questions(path, split="train")] == ["set-0", "set-2"]
    assert [q.id for q in load_questions(path, split="train", limit=1)] == ["set-0"]
    with pytest.raises(ValueError, match="no split 'dev'; its splits are train, test"):
        load_questions(path, split="dev")


def test_a_split_needs_a_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1: cannot pick split 'test' without a column"):
        load_questions(write(tmp_path / "set.jsonl", LIMA), split="test")


@pytest.mark.parametrize(
    "metadata",
    [
        {"supporting_facts": {"title": ["Film", "Film", "Director"], "sent_id": [0, 1, 0]}},
        {"supporting_facts": [["Film", 0], ["Film", 1], ["Director", 0]]},
        {
            "question_decomposition": [
                {"question": "?", "support_paragraph": {"title": "Film"}},
                {"question": "?", "support_paragraph": {"title": "Director"}},
            ]
        },
    ],
)
def test_gold_titles_of_flashrag(tmp_path: Path, metadata: dict[str, Any]) -> None:
    row = {"id": "dev_0", **LIMA, "metadata": metadata}
    (question,) = load_questions(write(tmp_path / "dev.jsonl", row))
    assert question.id == "dev_0"
    assert question.gold_titles == ("Film", "Director")


def test_metadata_without_gold_titles(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.jsonl", {**LIMA, "metadata": {"type": "x"}})
    assert load_questions(path)[0].gold_titles == ()


def search_r1_row(source: str, number: int, **columns: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"For example ... Question: who is {number}?\n"}]
    reward = {"ground_truth": {"target": [f"answer {number}"]}, "style": "rule"}
    extra = {"index": number, "split": "train"}
    return {
        "id": f"train_{number}",
        "data_source": source,
        "prompt": prompt,
        "reward_model": reward,
        "extra_info": extra,
        **columns,
    }


def test_search_r1_parquet(tmp_path: Path) -> None:
    rows = [search_r1_row("nq", 0), search_r1_row("hotpotqa", 0), search_r1_row("nq", 1)]
    questions = load_questions(write_parquet(tmp_path / "train.parquet", rows), split="train")
    assert questions[0] == Question("nq-train_0", "who is 0?", ("answer 0",), "nq")
    assert [q.id for q in questions[1:]] == ["hotpotqa-train_0", "nq-train_1"]


def test_search_r1_question_column_comes_before_the_prompt(tmp_path: Path) -> None:
    row = search_r1_row("nq", 0, question="who?", golden_answers=["me"])
    (question,) = load_questions(write(tmp_path / "train.jsonl", row))
    assert (question.text, question.golden_answers) == ("who?", ("me",))


def test_plain_prompts_and_ground_truths(tmp_path: Path) -> None:
    row = {"prompt": "who is it?", "reward_model": {"ground_truth": "me"}}
    (question,) = load_questions(write(tmp_path / "train.jsonl", row))
    assert (question.text, question.golden_answers) == ("who is it?", ("me",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"golden_answers": ["x"], "qs": 1}, r"no column 'question' .* are 'golden_answers', 'qs'"),
        ({"question": "?", "reply": 1}, r"no column 'golden_answers' .* 'question', 'reply'"),
        ({"question": "?", "golden_answers": []}, "has no golden answers"),
        ({"question": "?", "golden_answers": [" "]}, "non-blank string"),
        ({"question": "?", "golden_answers": [None]}, "has no golden answers"),
        ({"question": "?", "golden_answers": '["a", "b"'}, "'golden_answers': expected text that"),
        ({"question": "?", "golden_answers": "['a' 'b']"}, "'golden_answers': expected text that"),
        ({"question": "?", "golden_answers": {"n": "x"}}, "an object with one of the keys target"),
        (
            {"question": "?", "reward_model": '{"ground_truth": "x"'},
            "'reward_model': expected",
        ),
        ({**LIMA, "gold_ids": "['a', 'b'"}, "'gold_ids': expected text that is a whole list"),
        ({**LIMA, "gold_titles": "[array(['a'])]"}, "'gold_titles': expected text that is a whole"),
        ({**LIMA, "gold_titles": "[b'a']"}, "'gold_titles': expected strings"),
        ({**LIMA, "id": ["1"]}, "'id' must be a string"),
        (
            {**LIMA, "metadata": {"supporting_facts": '["a", 0'}},
            "titles of the gold documents: ",
        ),
        ({"question": " ", "golden_answers": ["x"]}, "text must not be blank"),
        ({"question": 3, "golden_answers": ["x"]}, "'question' must be a string"),
        ({**LIMA, "hops": "two"}, "'hops' must be a whole number, got 'two'"),
        ({**LIMA, "id": 1.5}, "'id' must be a string or a whole number"),
        ({**LIMA, "gold_ids": {"a": 1}}, "'gold_ids': expected an object"),
        ({"prompt": [{"role": "system", "content": "x"}]}, "one of them the user's"),
        ("{'question': 1}\n", "expected a JSON object in UTF-8"),
        ('["question"]\n', "expected a JSON object, got list"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "set.jsonl", LIMA, row)
    with pytest.raises(ValueError, match=rf"set\.jsonl, line 2: .*{message}"):
        load_questions(path)


def test_a_bad_parquet_row_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "set.parquet", [LIMA, {**LIMA, "golden_answers": []}])
    with pytest.raises(ValueError, match=r"set\.parquet, row 1: .*no golden answers"):
        load_questions(path)


def test_duplicate_ids_name_both_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", {**LIMA, "id": 1}, {**ROME, "id": "1"})
    with pytest.raises(ValueError, match=r"line 2: the question id '1' was used before, .*line 1"):
        load_questions(path)


def test_built_in_names(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [Question("1", "?", ("x",)), Question("2", "?", ("y",))]
    monkeypatch.setitem(BUILTIN_QUESTIONS, "mine", lambda name: list(mine))
    assert load_questions("mine") == mine
    assert load_questions("mine", limit=1) == mine[:1]
    with pytest.raises(ValueError, match="'mine' has no splits"):
        load_questions("mine", split="test")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("journalist<|answer_split|>journo", ["journalist", "journo"]),
        ('{"target": "[\\"a\\", \\"b\\"]"}', ["a", "b"]),
        (json.dumps(json.dumps(["a", "b"])), ["a", "b"]),
        ('["[\\"a\\"]"]', ['["a"]']),  # a list says what it means
        ('"[REC]"', ['"[REC]"']),
        ('["politician", "pol"]', ["politician", "pol"]),
        ("['a', 'b']", ["a", "b"]),
        ("('a', 'b')", ["a", "b"]),
        (' {"target": ["a", "b"]} ', ["a", "b"]),
        ({"target": "['a', 'b']"}, ["a", "b"]),
        ({"target": ["a", ["b", "c"]]}, ["a", "b", "c"]),
        ({"text": ["a", "b"], "answer_start": [3, 9]}, ["a", "b"]),
        ({"value": "a", "aliases": ["a", "b"], "type": "x"}, ["a", "b"]),
        (['["a", "b"]'], ["a", "b"]),
        (["a", None, 7, 7.0, 0.5], ["a", "7", "0.5"]),
        ("[None, 'a']", ["a"]),
        (1990, ["1990"]),
        (1990.0, ["1990"]),
        (True, ["yes", "true"]),
        (False, ["no", "false"]),
        ("[REC]", ["[REC]"]),
        ("{Proof}", ["{Proof}"]),
        ("[1, 2]", ["[1, 2]"]),
        ('["Heroes"] (song)', ['["Heroes"] (song)']),
        ("(I Can't Get No) Satisfaction", ["(I Can't Get No) Satisfaction"]),
        ("array", ["array"]),
        ("[\"['a', 'b\"]", ["['a', 'b"]),  # the text of a list holds plain text, as errors say
    ],
)
@pytest.mark.parametrize(
    "holder", ["golden_answers", "answers", "answer", "possible_answers", "reward", "spec", "text"]
)
def test_answers_in_containers(
    tmp_path: Path, value: Any, expected: list[str], holder: str
) -> None:
    columns: dict[str, Any] = {holder: value}
    if holder == "reward":
        columns = {"reward_model": {"style": "rule", "ground_truth": value}}
    elif holder == "spec":
        columns = {"reward_spec": {"method": "rule", "ground_truth": value}}
    elif holder == "text":
        columns = {"reward_model": json.dumps({"style": "rule", "ground_truth": value})}
    (question,) = load_questions(write(tmp_path / "set.jsonl", {"question": "?", **columns}))
    assert list(question.golden_answers) == expected


def test_ids_and_titles_in_text(tmp_path: Path) -> None:
    row = {**LIMA, "gold_ids": "[7, 'd2']", "gold_titles": '["[REC]", "T"]'}
    (question,) = load_questions(write(tmp_path / "set.jsonl", row))
    assert (question.gold_ids, question.gold_titles) == (("7", "d2"), ("[REC]", "T"))
    facts = {"supporting_facts": "[['Film', 0], ['Director', 1]]"}
    for metadata in (facts, json.dumps(facts), repr(facts)):
        path = write(tmp_path / "set.jsonl", {**LIMA, "metadata": metadata})
        assert load_questions(path)[0].gold_titles == ("Film", "Director")
    path = write(tmp_path / "set.jsonl", {**LIMA, "metadata": "a remark"})
    assert load_questions(path)[0].gold_titles == ()


def test_arrays_of_parquet_and_of_data_sets() -> None:
    from igsearch_env.data.containers import strings

    assert strings(np.array(["a", "b"], dtype=object)) == ("a", "b")
    assert strings({"target": np.array(["a"], dtype=object)}) == ("a",)
    assert strings((np.int64(3), np.float64("nan"), float("nan"))) == ("3",)
    with pytest.raises(ValueError, match="finite number, got inf"):
        strings(float("inf"))
    with pytest.raises(ValueError, match="got b'a'"):
        strings(b"a")


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("For example <answer> x </answer>. Question: Who wrote Question: Time?\n", "whole"),
        ("Question: one?\nAnswer: 1\n\nQuestion: Who wrote Question: Time?", "whole"),
        ("You get a Question: and answer it.\nQuestion: Who wrote Question: Time?", "whole"),
        ("Who is it?", "Who is it?"),
        ('["a", "b"] hold what?', '["a", "b"] hold what?'),
    ],
)
@pytest.mark.parametrize("kind", ["text", "messages", "parts", "JSON", "Python"])
def test_the_question_of_a_prompt(tmp_path: Path, prompt: str, asked: str, kind: str) -> None:
    messages: Any = [{"role": "system", "content": "Question: x"}]
    parts = [{"type": "text", "text": prompt}]
    messages += [{"role": "user", "content": parts if kind == "parts" else prompt}]
    made = {"JSON": json.dumps(messages), "Python": repr(messages), "text": prompt}
    row = {"prompt": made.get(kind, messages), "answer": "x"}
    (question,) = load_questions(write(tmp_path / "set.jsonl", row))
    assert question.text == ("Who wrote Question: Time?" if asked == "whole" else asked)


@pytest.mark.parametrize("as_text", [False, True])
def test_the_question_of_extra_info_comes_before_the_prompt(tmp_path: Path, as_text: bool) -> None:
    extra: Any = {"question": "Is Question: Time live?", "index": 3}
    row = search_r1_row("nq", 0, extra_info=json.dumps(extra) if as_text else extra)
    (question,) = load_questions(write(tmp_path / "train.jsonl", row))
    assert question.text == "Is Question: Time live?"


@pytest.mark.parametrize("name", ["world-train", "world-test"])
def test_the_embedded_world(name: str) -> None:
    questions = load_questions(name)
    assert questions
    assert len({q.id for q in questions}) == len(questions)
    assert load_questions(name, limit=3) == questions[:3]


@pytest.mark.skipif("IGSEARCH_DATA" not in os.environ, reason="IGSEARCH_DATA names no data folder")
@pytest.mark.parametrize("name", ["hotpotqa", "musique", "popqa", "nq", "triviaqa", "bamboogle"])
def test_real_question_sets(name: str) -> None:
    path = Path(os.environ["IGSEARCH_DATA"]) / f"{name}.questions.jsonl"
    questions = load_questions(path)
    assert len(questions) == len(path.read_bytes().splitlines())
    assert {q.dataset for q in questions} == {name}
    assert load_questions(path, split="dev", limit=5) == questions[:5]
