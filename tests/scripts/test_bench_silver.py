"""How much gold evidence silver chains find, counted by hand on a small corpus."""

import json
from itertools import islice

from igsearch_env.episode import Document
from scripts.benchmarks.silver import distractors, main

DOCUMENTS = [
    {"id": "f", "title": "Heat Wave", "text": "A film by Ana Paz."},
    {"id": "p", "title": "Ana Paz", "text": "Ana Paz was born in Quito."},
    {"id": "q", "title": "Quito", "text": "A city."},
]
QUESTIONS = [
    {
        "id": "1",
        "question": "Where was the director of Heat Wave born?",
        "golden_answers": ["Quito"],
        "supporting_ids": ["f", "p"],
        "hops": 2,
        "dataset": "films",
    },
    {
        "id": "2",
        "question": "Who painted it?",
        "golden_answers": ["Quito"],
        "supporting_ids": ["f", "p"],
        "hops": 2,
        "dataset": "films",
    },
]


def test_counts_by_hand_and_a_corpus_that_is_filled_up(tmp_path):
    corpus, questions, out = (tmp_path / name for name in ("c.jsonl", "q.jsonl", "out"))
    corpus.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    sizes = ["--documents", "3", "40"]
    main(["--out", str(out), "--corpus", str(corpus), "--questions", str(questions), *sizes])
    found = json.loads((out / "results.json").read_text())
    assert [build["documents"] for build in found["builds"]] == [3, 40]
    rows = {(row["documents"], row["questions"]): row for row in found["rows"]}
    # The first question's chain is f, p; the second one names no title.
    row = rows[3, "films"]
    assert (row["asked"], row["covered"], row["silver"]) == (2, 0.5, 1.0)
    assert (row["recall"], row["precision"]) == (0.5, 1.0)
    assert rows[3, "films, chain"]["recall"] == 1.0
    assert rows[3, "films, none"]["precision"] is None
    # Further documents with the titles of real ones, and "Quito" in them, make wrong chains.
    assert rows[40, "films, chain"]["precision"] < 1.0


def test_distractors_share_titles_and_sentences_with_the_corpus():
    corpus = [Document(row["id"], row["title"], row["text"]) for row in DOCUMENTS]
    made = list(islice(distractors(corpus), 200))
    titles = [document.title for document in corpus]
    assert all(document.title in titles for document in made[1::2])
    sentences = {document.text for document in corpus}
    assert {document.text for document in made} <= sentences  # each has one sentence, as they have
    assert made[:20] == list(islice(distractors(corpus), 20))
