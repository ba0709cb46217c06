r"""Judge answers with a language model, and compare it with exact match and with labels.

igsearch judge runs/eval --judge http://127.0.0.1:8000/v1 --cache runs/verdicts --out runs/judged
igsearch judge --labels labels.jsonl --judge http://127.0.0.1:8000/v1 --out runs/judged

A line of the labels is {"question": "...", "golden_answers": ["..."], "answer": "...",
"correct": true}, with "id" and "dataset" if you like.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igsearch_env.answers import bootstrap_interval, exact_match
from igsearch_env.cli.program import Parser, folder, output_folder, positive, say
from igsearch_env.evaluation.agreement import agreement
from igsearch_env.evaluation.folder import read_episodes
from igsearch_env.files import write_json, write_whole
from igsearch_env.text import read_json

if TYPE_CHECKING:
    from rich.table import Table

BATCH = 256


@dataclass(frozen=True)
class Graded:
    """An answer, and what is known of it.

    Args:
        source: Where it comes from: ``"evaluation"`` or ``"labels"``.
        id: Its question's id, or else the question.
        question: The question.
        golden_answers: The accepted answers.
        answer: The answer.
        em: Whether it is an exact match.
        label: Whether a person takes it for right; None where nobody said so.
    """

    source: str
    id: str
    question: str
    golden_answers: tuple[str, ...]
    answer: str
    em: bool
    label: bool | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Judge, print the agreement, and write agreement.json and verdicts.jsonl.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    args = _parser().parse_args(argv)
    from igsearch_env.cli.console import print_table, progress_bar
    from igsearch_env.endpoint.judge import Judge, judge_all

    if args.evaluation is None and args.labels is None:
        raise ValueError("there is nothing to judge; give the folder of an evaluation, or --labels")
    items = [*_of_evaluation(args.evaluation), *_of_labels(args.labels)]
    if not items:
        raise ValueError("there is nothing to judge: no answers, and no labels")
    judge = Judge.at(
        args.judge,
        args.model or "",
        str(args.cache) if args.cache else "",
        retries=args.retries,
        concurrency=args.concurrency,
    )
    verdicts = []
    with progress_bar() as bar:
        task = bar.add_task("judge", total=len(items))
        try:
            for start in range(0, len(items), BATCH):
                part = items[start : start + BATCH]
                asked = [(one.question, one.golden_answers, one.answer) for one in part]
                verdicts += judge_all(judge, asked)
                bar.advance(task, len(part))
        finally:
            judge.close()
    correct = [None if verdict is None else verdict.correct for verdict in verdicts]
    results = compared(items, correct)
    results |= {"judge": {**judge.counts}, "judge_model": args.model or ""}
    if args.out is not None:
        lines = (
            json.dumps({**vars(one), "verdict": said, "reason": verdict and verdict.reason}) + "\n"
            for one, said, verdict in zip(items, correct, verdicts, strict=True)
        )
        write_whole(args.out / "verdicts.jsonl", "".join(lines))
        write_json(args.out / "agreement.json", results)
    say(judge.summary())
    if not results["rows"]:
        raise ValueError("no answer was judged; see that the judge's server works")
    print_table(_table(results))


def compared(items: Sequence[Graded], correct: Sequence[bool | None]) -> dict[str, Any]:
    """What the judge says, and how far it agrees with exact match and with labels.

    Answers whose judgement failed are left out and counted.

    Args:
        items: The answers.
        correct: What the judge says of each; None where its judgement failed.

    Returns:
        ``rows``, one for each source and pair of graders
        (:func:`igsearch_env.evaluation.agreement.agreement`), ``right``, the share that the judge
        takes for right, and ``failed`` for each source.
    """
    found: dict[str, Any] = {"rows": [], "right": {}, "failed": {}}
    for source in dict.fromkeys(one.source for one in items):
        pairs = [(i, c) for i, c in zip(items, correct, strict=True) if i.source == source]
        known = [(one, said) for one, said in pairs if said is not None]
        found["failed"][source] = len(pairs) - len(known)
        if not known:
            continue
        judged = [said for _, said in known]
        graders = {"judge": judged, "exact match": [one.em for one, _ in known]}
        if source == "labels":
            graders["labels"] = [bool(one.label) for one, _ in known]
        means = [float(said) for said in judged]
        mean = sum(means) / len(means)
        found["right"][source] = {"share": mean, "interval": list(bootstrap_interval(means))}
        groups = [one.id for one, _ in known]
        names = list(graders)
        found["rows"] += [
            {
                "source": source,
                "first": one,
                "second": other,
                "agreement": agreement(graders[one], graders[other], groups),
            }
            for place, one in enumerate(names)
            for other in names[place + 1 :]
        ]
    return found


def _of_evaluation(path: Path | None) -> Iterator[Graded]:
    """The answers of an evaluation; an episode without one, or with a failed search, has none."""
    if path is None:
        return
    file = path / "episodes.jsonl"
    if not file.is_file():
        raise ValueError(
            f"{path} holds no finished evaluation (no episodes.jsonl); run igsearch evaluate --out "
            f"{path} first"
        )
    for episode in read_episodes(file):
        answer, question = (episode.answer or "").strip(), episode.question
        if answer and not episode.retrieval_failed:
            golds = question.golden_answers
            em = exact_match(answer, golds) == 1.0
            yield Graded("evaluation", question.id, question.text, golds, answer, em)


def _of_labels(path: Path | None) -> Iterator[Graded]:
    if path is None:
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = read_json(line)
            question, golds = row["question"], row["golden_answers"]
            answer, label = row["answer"], row["correct"]
            texts = [question, answer, *golds]
            fits = isinstance(golds, list) and golds and all(isinstance(t, str) for t in texts)
            if not (fits and isinstance(label, bool)):
                raise TypeError("a field has another type")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected an object with question, golden_answers (a list "
                f"of texts), answer and correct (true or false); got {line[:80]!r} ({error})"
            ) from error
        em = exact_match(answer, golds) == 1.0
        name = str(row.get("id", question))
        yield Graded("labels", name, question, tuple(golds), answer, em, label)


def _table(results: dict[str, Any]) -> Table:
    from igsearch_env.cli.console import make_table

    cells = []
    for row in results["rows"]:
        found = row["agreement"]
        counts = (str(found[name]) for name in ("n", "both", "first", "second", "neither"))
        accuracy = _with_interval(found["accuracy"], found["accuracy_interval"])
        kappa = _with_interval(found["kappa"], found["kappa_interval"])
        graders = f"{row['first']}, {row['second']}"
        cells.append((row["source"], graders, *counts, accuracy, kappa))
    headings = ("answers of", "A, B", "n", "both right", "only A", "only B", "neither")
    title = "agreement, with 95 % intervals"
    return make_table(
        title, (*headings, "same verdict", "kappa"), cells, text=("answers of", "A, B")
    )


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    shown = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return f"{value:.3f}{shown}"


def _parser() -> Parser:
    parser = Parser("igsearch judge", __doc__)
    add = parser.add_argument
    add(
        "evaluation",
        type=folder,
        nargs="?",
        metavar="FOLDER",
        help="folder of a finished evaluation, whose answers are judged",
    )
    add("--labels", type=Path, help="JSONL file of answers that people have judged")
    add("--judge", required=True, help="address of an OpenAI-compatible server")
    add("--model", help="name of its model (default: the only one that it serves)")
    add("--cache", type=folder, help="folder of verdicts, which runs may share")
    add(
        "--concurrency",
        type=positive,
        default=16,
        help="answers that are judged at once (default: %(default)s)",
    )
    add(
        "--retries",
        type=int,
        default=8,
        help="how often a request that fails is repeated (default: %(default)s)",
    )
    add("--out", type=output_folder, help="folder for agreement.json and verdicts.jsonl")
    return parser
