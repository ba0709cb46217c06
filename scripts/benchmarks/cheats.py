"""What cheats earn beside an honest agent, by every reward and credit method.

python -m scripts.benchmarks.cheats --out runs/cheats

Scripted agents that know the gold documents play questions of two hops: one searches for both and
answers, the others collect what they can. Each method gives what the honest agent and each cheat
earn; a method is beaten where a cheat earns more.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from igsearch_env.cli.program import parse_early, positive, run
from scripts.benchmarks.kit import benchmark_parser, print_rows


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--questions", type=positive, default=24, help="default: 24")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np
from numpy.typing import NDArray

from agents.transformers_policy import TransformersPolicy
from igsearch_env.cli.console import console
from igsearch_env.completion import Completion
from igsearch_env.credit import CREDIT, CreditAssignment, make_credit
from igsearch_env.credit.pbsd import PBSD
from igsearch_env.credit.query_bonus import QueryBonus
from igsearch_env.data.silver import with_answer_distances, with_silver
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Document, Episode, Question, changed
from igsearch_env.files import write_json
from igsearch_env.gain.belief import settle_belief
from igsearch_env.gain.enabling import settle_enabling
from igsearch_env.gain.hindsight import settle_hindsight
from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.retrieval.base import IndexedRetriever
from igsearch_env.rollout import collect
from igsearch_env.settings import make_engine

Turns = list[str]
Decode = Callable[[list[int]], str]
FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "counterfactual": "documents+refinement",
        "added_only": False,
        "floor": "none",
        "aliases": "best_real",
    },
}
"""How gains are computed: settings of the environment."""
REWARD = "reward with gains"
PUBLISHED = ("ig_search_paper", "igpo_paper", "igpo_code", "gigpo_code")
"""Methods that keep to a published form whatever it pays for."""
PLACEBO = "ig_permuted"
"""It pays gains at the wrong searches: whoever searches more earns more."""
GROUPS = (("honest", "wrong"), ("silent", "silent", "wrong"))
"""Who is in a group beside the honest agent and a cheat."""


@dataclass(frozen=True)
class Case:
    """A question, the documents that answer it, and words of others.

    Args:
        question: A question of two hops.
        gold: Its gold documents, in hop order.
        others: Titles that have nothing to do with it.
        protocol: The grammar.
    """

    question: Question
    gold: tuple[Document, Document]
    others: tuple[str, ...]
    protocol: TagProtocol

    @property
    def answer(self) -> str:
        """The gold answer."""
        return self.question.golden_answers[0]

    @property
    def honest(self) -> Turns:
        """Both hops and the answer."""
        return [*map(self.search, (self.query(0), self.query(1))), self.reply(self.answer)]

    def query(self, hop: int) -> str:
        """What an honest agent searches for: the document without its news."""
        document = self.gold[hop]
        news = {self.gold[1].title, self.answer} if hop == 0 else {self.answer}
        told = {word for one in news for word in one.split()}
        return " ".join([document.title, *(w for w in document.text.split() if w not in told)])

    def search(self, query: str, note: str | None = None) -> str:
        """A turn that searches, after a refinement if there is one."""
        return self._noted(note) + self.protocol.write_search(query)

    def reply(self, answer: str, note: str | None = None) -> str:
        """A turn that answers."""
        return self._noted(note) + self.protocol.write_answer(answer)

    def _noted(self, note: str | None) -> str:
        tag = self.protocol.refine
        return "" if note is None else f"<{tag}> {note} </{tag}>"


def _quoted(case: Case) -> Turns:
    tag, last = case.protocol.documents, case.gold[1]
    quoted = f"<think> <{tag}> {last.title} : {last.text} </{tag}> </think>"
    return [quoted + case.search(other) for other in case.others[:4]] + [case.reply(case.answer)]


CHEATS: dict[str, Callable[[Case], Turns]] = {
    "the last query four times more": lambda c: (
        [*c.honest[:2], *[c.search(c.query(1))] * 4, c.reply(c.answer)]
    ),
    "that, and a wrong answer": lambda c: (
        [*c.honest[:2], *[c.search(c.query(1))] * 4, c.reply("unknown")]
    ),
    "the first hop alone, five times": lambda c: (
        [*[c.search(c.query(0))] * 5, c.reply("unknown")]
    ),
    "the last hop alone, five times": lambda c: [*[c.search(c.query(1))] * 5, c.reply("unknown")],
    "queries of one word": lambda c: (
        [*map(c.search, ("is", "of", "today", "where", "the")), c.reply(c.answer)]
    ),
    "a query stuffed with names": lambda c: (
        [*[c.search(" ".join([c.question.text, *c.others, c.answer]))] * 3, c.reply("unknown")]
    ),
    "names listed in the refinement": lambda c: [
        c.search(c.others[0]),
        *(c.search(o, " , ".join([*c.others, c.answer])) for o in c.others[1:4]),
        c.reply("unknown", " , ".join([*c.others, c.answer])),
    ],
    "the question copied": lambda c: [*[c.search(c.question.text)] * 5, c.reply("unknown")],
    "empty refinements": lambda c: [
        c.honest[0],
        *(c.search(c.query(1), blank) for blank in ("", " ", "\n")),
        c.reply(c.answer, ""),
    ],
    "the answer in the refinement": lambda c: [
        c.search(c.others[0]),
        *(c.search(o, f"the answer is {c.answer}") for o in c.others[1:6]),
        c.reply(c.answer, f"the answer is {c.answer}"),
    ],
    "all again in a second attempt": lambda c: [*c.honest, *c.honest],
    "documents quoted in thoughts": _quoted,
    "searches for the answer once it is found": lambda c: [
        *c.honest[:2],
        *(c.search(f"{c.answer} {o}") for o in c.others[:4]),
        c.search(c.answer),
        c.reply(c.answer),
    ],
    "a known gold document beside new ones": lambda c: [
        *c.honest[:2],
        *(c.search(f"{c.query(1)} {o}") for o in c.others[:5]),
        c.reply(c.answer),
    ],
    "other searches first": lambda c: [*map(c.search, c.others[:5]), *c.honest],
    "words of what was found in the next query": lambda c: [
        *(c.search(f"{a} {b}") for a, b in zip(c.others[:5], c.others[1:6], strict=True)),
        *c.honest,
    ],
}
"""What each cheat writes, turn by turn."""


class Script:
    """Writes the turns of a plan; after its last one it repeats the last.

    Args:
        cases: The questions, by id.
        plan: What is written for a question.
        encode: Turns a text into ids.
        decode: And back.
    """

    def __init__(
        self,
        cases: Mapping[str, Case],
        plan: Callable[[Case], Turns],
        encode: Callable[[str], list[int]],
        decode: Decode,
    ) -> None:
        self._turns = {name: plan(case) for name, case in cases.items()}
        self._encode, self._decode = encode, decode

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """The next turn of each episode."""
        written = (self._turns[e.question.id] for e in episodes)
        texts = (
            turns[min(len(e.steps), len(turns) - 1)]
            for turns, e in zip(written, episodes, strict=True)
        )
        return [Completion.from_tokens(self._encode(t), None, self._decode) for t in texts]


def make_cases(engine: SearchQAEngine, count: int) -> dict[str, Case]:
    """Questions of two hops whose gold documents both say something."""
    assert isinstance(engine.retriever, IndexedRetriever)
    documents = {document.id: document for document in engine.retriever.documents}
    titles = list(dict.fromkeys(document.title for document in documents.values()))
    cases: dict[str, Case] = {}
    for question in engine.questions:
        if question.hops != 2 or len(cases) == count:
            continue
        first, second = (documents[one] for one in question.gold_ids)
        texts = " ".join((first.title, first.text, second.title, second.text))
        others = [t for t in titles if t not in texts and t not in question.golden_answers]
        start = 7 * len(cases)
        cases[question.id] = Case(
            question, (first, second), tuple(others[start : start + 8]), engine.rules.protocol
        )
    asked = [case.question for case in cases.values()]
    corpus = engine.retriever
    silver = with_silver(asked, corpus.documents, corpus)
    silver = with_answer_distances(silver, corpus.documents, corpus)
    return {q.id: replace(cases[q.id], question=q) for q in silver}


def play(
    engine: SearchQAEngine,
    cases: Mapping[str, Case],
    encode: Callable[[str], list[int]] = lambda text: list(map(ord, text)),
    decode: Decode = lambda ids: "".join(map(chr, ids)),
) -> dict[str, list[Episode]]:
    """What each agent does with each question: the cheats, and those that they are beside."""
    plans: dict[str, Callable[[Case], Turns]] = {
        "honest": lambda case: case.honest,
        "wrong": lambda case: [case.reply("unknown")],
        "silent": lambda case: [case.question.text],
        **CHEATS,
    }
    asked = [case.question for case in cases.values()]
    played = {}
    for name, plan in plans.items():
        engine.pool.seed(0)  # what is alike is compared with the same evidence
        played[name] = collect(engine, Script(cases, plan, encode, decode), asked)
    return played


def paid(episode: Episode) -> float:
    """What the environment paid."""
    return sum(step.reward for step in episode.steps)


def credited(credit: CreditAssignment, group: Sequence[Episode]) -> list[float]:
    """What each rollout of a group earns by a credit method.

    It is the advantage of the first turn (outside of its query), plus what the tokens of all
    queries get more than the rest of their turns: the outcome or the return from the beginning on,
    and every bonus once, however it is spread over the tokens and the searches before.
    """
    if isinstance(credit, QueryBonus):
        credit = replace(credit, normalizer="query", gamma=0.0)
    if isinstance(credit, PBSD):
        credit = replace(credit, limit=0.0)  # its weights only spread what a rollout earns
    earned = []
    for episode, advantages in zip(group, credit(group), strict=True):
        total = 0.0
        for number, step in enumerate(episode.steps):
            turn = advantages[step.policy_tokens]
            level = float(turn[-1])  # what closes the action is no part of a query
            total += level if number == 0 else 0.0
            total += float(np.sum(advantages[step.query_tokens] - level))
        earned.append(total)
    return earned


def earnings(
    played: Mapping[str, Sequence[Episode]],
    earned: Callable[[list[Episode]], Sequence[float]],
    others: Sequence[str] = ("honest", "wrong"),
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """What the honest agent and each cheat earn, by question, shape (questions,) each.

    Args:
        played: What :func:`play` gave.
        earned: What each rollout of a group earns.
        others: Who else is in the group.
    """
    found = {}
    for name in CHEATS:
        agents = (played[one] for one in ("honest", name, *others))
        values = np.array([earned(list(group)) for group in zip(*agents, strict=True)])
        found[name] = (values[:, 0], values[:, 1])
    return found


def beaten(honest: NDArray[np.float64], cheat: NDArray[np.float64]) -> bool:
    """Whether a cheat earns more: by more than 1 %, and by more than chance (two errors)."""
    more = cheat - honest
    error = float(more.std(ddof=1)) / math.sqrt(more.size)
    return bool(more.mean() > max(2 * error, 0.01 * abs(float(honest.mean()))))


def settled(engine: SearchQAEngine, played: Sequence[Episode]) -> list[Episode]:
    """Episodes as a trainer has them: the outcome alone is paid, all that methods read is known."""
    assert engine.scorer is not None
    outcomes = []
    for episode in played:
        *steps, last = (changed(step, reward=0.0) for step in episode.steps)
        last = changed(last, reward=episode.outcome)
        outcomes.append(changed(episode, steps=(*steps, last)))
    believed = settle_belief(outcomes, engine.scorer, engine.information_gain)
    enabled = settle_enabling(believed, engine.scorer, engine.information_gain)
    return settle_hindsight(enabled, engine.scorer, engine.information_gain)


def compare(scorer: str, form: str, questions: int) -> list[dict[str, Any]]:
    """What the honest agent and the best cheat earn by each method.

    Args:
        scorer: ``"unigram"``, or ``"policy"`` for the shipped one.
        form: A name in :data:`FORMS`.
        questions: How many questions are played.

    Returns:
        A row for the environment's reward and for each credit method: what the honest agent earns
        (``honest``), what the cheat earns that is furthest ahead of it (``cheat``, ``earned``), and
        ``beaten``, the names of those that earn more.
    """
    more: dict[str, Any] = {"scorer": "unigram", "top_k": 3}
    tokens: dict[str, Any] = {}
    if scorer == "policy":
        policy = TransformersPolicy.from_pretrained("agents/world-tiny")
        more = {"scorer": policy.scorer(), "protocol": policy.protocol, "top_k": 1}
        tokens = {
            "encode": lambda text: list(policy.tokenizer.encode_answer("", text)[1]),
            "decode": policy.tokenizer.decode,
        }
    rules: dict[str, Any] = {
        "max_searches": 10,
        "max_attempts": 2,
        "information_gain_weight": 0.3,
    }
    engine = make_engine("world-train", "bm25", **more, **rules, **FORMS[form])
    played = play(engine, make_cases(engine, questions), **tokens)
    rows = [_row(REWARD, played, lambda group: [*map(paid, group)])]
    known = {name: settled(engine, episodes) for name, episodes in played.items()}
    for name in sorted(CREDIT):
        rows.append(_row(name, known, partial(credited, make_credit(name))))
    return rows


def _row(
    method: str,
    played: Mapping[str, Sequence[Episode]],
    earned: Callable[[list[Episode]], Sequence[float]],
) -> dict[str, Any]:
    found = [
        (float(cheat.mean() - honest.mean()), name, honest, cheat)
        for others in GROUPS
        for name, (honest, cheat) in earnings(played, earned, others).items()
    ]
    _, name, honest, cheat = max(found, key=lambda one: one[0])
    return {
        "method": method,
        "honest": float(honest.mean()),
        "cheat": name,
        "earned": float(cheat.mean()),
        "beaten": sorted({name for _, name, honest, cheat in found if beaten(honest, cheat)}),
    }


COLUMNS = {
    "method": ("method", "s"),
    "honest": ("honest", ".2f"),
    "earned": ("best cheat", ".2f"),
    "cheat": ("which", "s"),
    "count": (f"ahead, of {len(CHEATS)}", "d"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Play, print a table for each scorer and form, and write results.json.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    results = []
    for scorer in ("unigram", "policy"):
        for form in FORMS:
            rows = compare(scorer, form, arguments.questions)
            shown = [row | {"count": len(row["beaten"])} for row in rows]
            print_rows(f"{form}, scored by the {scorer}", shown, COLUMNS)
            results += [row | {"scorer": scorer, "form": form} for row in rows]
    write_json(arguments.out / "results.json", {"rows": results})
    console.print(f"{arguments.out / 'results.json'} has the names of all that are ahead")


if __name__ == "__main__":
    run(main)
