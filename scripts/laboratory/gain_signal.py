"""What each signal tells apart in the searches of a policy, and what it costs.

python -m scripts.laboratory.gain_signal --config trainers/configs/demo.toml --out runs/gain_signal
python -m scripts.laboratory.gain_signal --config trainers/configs/smollm2.toml \
    --questions 40 --constructed --out runs/gain_signal

Plays rollouts as training would, computes every signal, and sorts the searches by what they found:
the last document (gold, with the answer in it), a bridge (gold, without it), the answer in a
document that is not gold, a miss, nothing new, or nothing; a search may also have failed. A signal
that does not put bridges above misses cannot teach them. How often it does is the AUC, which takes
five questions with the one kind and five with the other. What a signal costs stands beside it:
scored tokens and CPU seconds per search, and its share of a training step. --constructed searches
for titles instead (that of a bridge, that of a last document, and that of a gold document of
another question), without a share.
"""

from __future__ import annotations

from collections.abc import Sequence

from igsearch_env.cli.program import Parser, output_folder, parse_early, positive, run


def _parser() -> Parser:
    parser = Parser(None, __doc__)
    add = parser.add_argument
    add("--config", help="file of training settings; the defaults without one")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    add("--questions", type=positive, default=150, help="questions, G rollouts of each")
    add("--constructed", action="store_true", help="search for titles, not as the policy does")
    add("--out", type=output_folder, required=True, help="folder of results.json")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from igsearch_env.answers import contains_answer
from igsearch_env.cli.console import make_table, print_table, progress_bar
from igsearch_env.completion import Completion
from igsearch_env.credit.belief_shift import TIPS, BeliefGroup
from igsearch_env.credit.gdcr import GDCR
from igsearch_env.credit.ig_search import IGSearch, found_anew
from igsearch_env.credit.query_bonus import newly_found
from igsearch_env.data.silver import with_answer_distances, with_silver
from igsearch_env.episode import Document, Episode, Question, Step
from igsearch_env.files import write_json
from igsearch_env.gain.belief import settle_belief
from igsearch_env.gain.enabling import settle_enabling
from igsearch_env.gain.hindsight import settle_hindsight
from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.render import CUT, is_gold
from igsearch_env.retrieval.base import IndexedRetriever, Retriever
from igsearch_env.rollout import collect
from igsearch_env.text import without_logins
from igsearch_env.threads import set_threads
from trainers.config import TrainSettings, load_config

if TYPE_CHECKING:
    from agents.transformers_policy import TransformersPolicy

KINDS = ("last", "bridge", "answer", "miss", "known", "nothing", "failed")
"""What a search may have found."""

PAIRS = (("bridge", "miss"), ("last", "miss"))
RESAMPLES = 1000
MIN_QUESTIONS = 5
Values = list[list[float | None]]
"""A signal of each search of each episode, None where it has none."""
Sample = tuple[list[float], list[float]]
"""Values of the searches of one question: those that should be high, and the others."""


def main(argv: Sequence[str] | None = None) -> None:
    """Play, print the tables and write results.json.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    results = arguments.out / "results.json"
    if results.exists():
        raise ValueError(f"{results} exists already; choose another folder or remove it")
    config = load_config(arguments.config, arguments.set)
    arguments.out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is told now
    from trainers.setup import with_precision  # loads torch

    config = with_precision(config)
    episodes, costs = rollouts(config, arguments.questions, constructed=arguments.constructed)
    found = signals(episodes)
    rows = kinds_table(episodes, found)
    aucs = separation(episodes, found)
    for table in (_table_of_kinds(rows, len(episodes)), _table_of_aucs(aucs, costs)):
        print_table(table)
    write_json(
        results,
        {
            "config": config.to_dict(),
            "constructed": arguments.constructed,
            "rollouts": len(episodes),
            "kinds": rows,
            "separation": aucs,
            "costs": costs,
        },
    )


def rollouts(
    config: TrainSettings, questions: int, *, constructed: bool = False
) -> tuple[list[Episode], dict[str, dict[str, float]]]:
    """Settled rollouts of the first questions, G of each, in the batches of training.

    Args:
        config: Settings of a training run.
        questions: How many questions.
        constructed: Whether titles are searched for, three rollouts of each question.

    Returns:
        The episodes with all that signals read; and of each thing that is scored, CPU seconds and
        scored tokens per search, each computed for itself. Unless titles are searched for,
        ``"rollouts"`` and ``"update"`` are there too: the other seconds of a training step per
        search, the update's those of the last batch.

    Raises:
        ValueError: If there are fewer questions, or some without gold documents; the credit needs
            no gains; no rollout searches; all searches of a batch fail; or no search has a gain.
    """
    from trainers.setup import (  # loads torch
        group_ids,
        make_agent,
        make_training_engine,
        with_protocol,
    )

    set_threads(config.run.threads)
    o, engine = config.optimization, make_training_engine(config, config.run.seed)
    if not engine.num_counterfactuals:
        raise ValueError(
            "no search would have a gain: set credit.method to one that needs gains, such as "
            f"ig_search (it is {config.credit['method']}), and environment.num_counterfactuals to "
            f"at least 1 (it is {config.environment.num_counterfactuals})"
        )
    if len(engine.questions) < questions:
        raise ValueError(
            f"--questions asks for {questions}, but there are {len(engine.questions)} of them"
        )
    asked = engine.questions[:questions]
    gold = _gold_documents(asked, engine.retriever, constructed=constructed)
    agent = make_agent(config, engine)
    engine = with_protocol(engine, agent.policy.protocol, agent.policy.tokenizer)
    asked = _with_silver(asked, engine.retriever)
    player = TitleAgent(gold, agent.policy.protocol) if constructed else agent
    size = 3 if constructed else o.group_size
    episodes: list[Episode] = []
    spent: defaultdict[str, dict[str, float]] = defaultdict(lambda: {"seconds": 0.0, "tokens": 0.0})
    with progress_bar() as bar:
        task = bar.add_task("questions", total=len(asked))
        for step, start in enumerate(range(0, len(asked), o.questions_per_step)):
            batch = asked[start : start + o.questions_per_step]
            groups = group_ids(batch, step, size)
            began = time.process_time()
            played = collect(engine, player, [q for q in batch for _ in range(size)], groups)
            spent["rollouts"]["seconds"] += time.process_time() - began
            _require_retrieval(played, config.environment.searched)
            settled = []
            for name, settle in (
                ("belief", partial(settle_belief, information_gain=engine.information_gain)),
                ("information gain", engine.information_gain.settle),
                ("enabling", partial(settle_enabling, information_gain=engine.information_gain)),
                ("hindsight", partial(settle_hindsight, information_gain=engine.information_gain)),
            ):
                scorer = agent.policy.scorer()
                began = time.process_time()
                settled.append(settle(played, scorer=scorer))
                spent[name]["seconds"] += time.process_time() - began
                spent[name]["tokens"] += scorer.tokens_processed
            episodes += [_merged(*one) for one in zip(*settled, strict=True)]
            agent.policy.memory.clear()
            bar.advance(task, len(batch))
    _require_gains(episodes)
    searches = sum(not step.retrieval_failed for e in episodes for step in e.searches)
    costs = {
        name: {of: value / searches for of, value in sums.items()} for name, sums in spent.items()
    }
    if constructed:
        del costs["rollouts"]
    else:
        share = len(episodes) / len(played) / searches  # of an update of all batches, per search
        seconds = _update_seconds(config, agent.policy, played) * share
        costs["update"] = {"seconds": seconds, "tokens": 0.0}
    return episodes, costs


def _require_retrieval(episodes: Sequence[Episode], searched: str) -> None:
    """Refuse to go on with a search engine that answers nothing."""
    steps = [step for episode in episodes for step in episode.searches]
    if steps and all(step.retrieval_failed for step in steps):
        raise ValueError(
            f"all {len(steps)} searches of the last questions failed; see to the search engine, "
            f"{without_logins(searched)}"
        )


def _require_gains(episodes: Sequence[Episode]) -> None:
    """Refuse episodes in which there is nothing to show, and say what they did."""
    steps = [step for episode in episodes for step in episode.steps]
    searches = [step for step in steps if step.action == "search"]
    if not searches:
        answers = sum(step.action == "answer" for step in steps)
        spent = sum(episode.ended_by == "tokens" for episode in episodes)
        cut = sum(step.action == "invalid" and step.stop_reason in CUT for step in steps)
        raise ValueError(
            f"none of {len(episodes)} rollouts made a search: of their {len(steps)} turns "
            f"{answers} were answers, {cut} were cut before they were complete, and "
            f"{len(steps) - answers - cut} were neither a search nor an answer; {spent} rollouts "
            "ran out of environment.episode_tokens. If turns were cut, raise policy.max_new_tokens;"
            " a policy that was never taught to search needs training (scripts.warm_start) or "
            "examples in its prompt (environment.protocol=scripts/laboratory/three_examples.toml)"
        )
    if all(step.information_gain is None for step in searches):
        full = sum(bool(step.documents) for step in searches)
        failed = sum(step.retrieval_failed for step in searches)
        raise ValueError(
            f"none of {len(searches)} searches has a gain: {failed} failed, and {full} found "
            "documents. A search has one if it finds documents, and documents of other questions "
            "are there to take their place; see to environment.retriever and the questions"
        )


def _update_seconds(
    config: TrainSettings, policy: TransformersPolicy, episodes: Sequence[Episode]
) -> float:
    """CPU seconds of an update in which every token has an advantage."""
    from trainers.local.update import Updater  # loads torch

    o, temperature = config.optimization, config.policy.temperature
    updater = Updater(policy.model, policy.tokenizer, o, temperature, autocast=policy.autocast)
    advantages = [np.ones(episode.policy_tokens) for episode in episodes]
    began = time.process_time()
    updater.step(episodes, advantages, np.random.default_rng(0))
    return time.process_time() - began


class TitleAgent:
    """Searches once, for a title: a bridge's, a last document's, or one of another question.

    Which of them depends on how often the question has been begun: in groups of three each comes
    once. A question without a bridge, or without a last document, is asked with the other one.

    Args:
        gold: Each question with its gold documents, at least one; every document has a title.
        protocol: The grammar.

    Raises:
        ValueError: If a question has the gold documents of all others, so that no title is a miss.
    """

    def __init__(
        self, gold: Sequence[tuple[Question, Sequence[Document]]], protocol: TagProtocol
    ) -> None:
        self.protocol = protocol
        titles = [[document.title for document in documents] for _, documents in gold]
        self._queries: dict[str, list[str]] = {}
        for number, (question, documents) in enumerate(gold):
            pairs = [(one.title, _holds_answer(one, question)) for one in documents]
            bridge = [title for title, held in pairs if not held]
            last = [title for title, held in pairs if held]
            others = titles[number + 1 :] + titles[:number]
            miss = [title for other in others for title in other if title not in titles[number]]
            if not miss:
                raise ValueError(
                    f"no other question has gold documents that question {question.id!r} has not, "
                    "and one of their titles is searched for as a miss; ask more questions"
                )
            self._queries[question.id] = [
                (wanted or titles[number])[0] for wanted in (bridge, last, miss)
            ]
        self._begun: defaultdict[str, int] = defaultdict(int)

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Write the next turn of each episode."""
        return [Completion(self._turn(episode)) for episode in episodes]

    def _turn(self, episode: Episode) -> str:
        if episode.steps:
            return self.protocol.write_answer("unknown")
        queries = self._queries[episode.question.id]
        number = self._begun[episode.question.id]
        self._begun[episode.question.id] += 1
        return self.protocol.write_search(queries[number % len(queries)])


def signals(episodes: Sequence[Episode]) -> dict[str, Values]:
    """Every signal of every search.

    Args:
        episodes: Settled episodes, whole groups.
    """
    shifts = [TIPS().shifts(episode) for episode in episodes]
    found: dict[str, Values] = {
        "information gain": [[s.information_gain for s in e.searches] for e in episodes],
        "probability": IGSearch(measure="probability").gains(episodes),
        "enabling": [[step.enabling for step in e.searches] for e in episodes],
        "belief shift": shifts,
        "less siblings": BeliefGroup().compared(episodes, shifts),
        "hindsight": [
            [
                e.steps[e.turn_of(t).stop - 1].hindsight_shift  # the last call has that of the turn
                for t, step in enumerate(e.steps)
                if step.action == "search"
            ]
            for e in episodes
        ],
    }
    if all(episode.question.silver_ids is not None for episode in episodes):
        found["silver"] = [
            [*newly_found(episode, episode.question.silver_ids or ())] for episode in episodes
        ]
    if all(episode.question.answer_distances is not None for episode in episodes):
        found["distance"] = [[*row] for row in GDCR().signals(episodes)]
    return found


def kinds_of(episode: Episode) -> list[str]:
    """What each search of an episode found, a name of :data:`KINDS`."""
    return [
        _kind(step, episode.question, new=new)
        for step, new in zip(episode.searches, found_anew(episode), strict=True)
    ]


def _kind(step: Step, question: Question, *, new: bool) -> str:
    if step.retrieval_failed:
        return "failed"
    if not step.documents:
        return "nothing"
    if not new:
        return "known"
    holds = [_holds_answer(document, question) for document in step.documents]
    if any(is_gold(document, question) for document in step.documents):
        return "last" if any(holds) else "bridge"
    return "answer" if any(holds) else "miss"


def _holds_answer(document: Document, question: Question) -> bool:
    return contains_answer(f"{document.title} {document.text}", question.golden_answers)


def kinds_table(episodes: Sequence[Episode], found: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Number of searches of each kind, and mean and deviation of each signal over them."""
    places: defaultdict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for i, episode in enumerate(episodes):
        for t, (step, kind) in enumerate(zip(episode.searches, kinds_of(episode), strict=True)):
            number = "later" if step.search_step else "first"
            places[number, KINDS.index(kind)].append((i, t))
    rows = []
    for (number, place), members in sorted(places.items()):
        row: dict[str, Any] = {"search": number, "found": KINDS[place], "searches": len(members)}
        for name, values in found.items():
            numbers = [v for i, t in members if (v := values[i][t]) is not None]
            row[name] = [float(np.mean(numbers)), float(np.std(numbers))] if numbers else None
        rows.append(row)
    return rows


def separation(episodes: Sequence[Episode], found: Mapping[str, Values]) -> list[dict[str, Any]]:
    """How well each signal puts one kind above another: AUC with a 95 % interval.

    The AUC is the probability that a search of the one kind has the higher value, ties counted
    half. Questions are resampled with all their searches, since the searches of a question are
    alike. Fewer than :data:`MIN_QUESTIONS` questions of either kind give None: resamples of so few
    are too much alike, and the interval would be far too narrow.
    """
    rows = []
    for name, values in found.items():
        row: dict[str, Any] = {"signal": name}
        for high, low in PAIRS:
            by_question: defaultdict[str, Sample] = defaultdict(lambda: ([], []))
            for i, episode in enumerate(episodes):
                for t, kind in enumerate(kinds_of(episode)):
                    value = values[i][t]
                    if value is not None and kind in (high, low):
                        by_question[episode.question.id][kind == low].append(value)
            row[f"{high}/{low}"] = _auc_with_interval([*by_question.values()])
        rows.append(row)
    return rows


def _auc_with_interval(samples: Sequence[Sample]) -> list[float] | None:
    few = any(sum(bool(sample[side]) for sample in samples) < MIN_QUESTIONS for side in (0, 1))
    whole = None if few else auc(*_joined(samples))
    if whole is None:
        return None
    rng = np.random.default_rng(0)
    again = []
    for _ in range(RESAMPLES):
        chosen = [samples[i] for i in rng.integers(0, len(samples), len(samples))]
        value = auc(*_joined(chosen))
        if value is not None:
            again.append(value)
    low, high = np.quantile(again, [0.025, 0.975])
    return [whole, float(low), float(high)]


def _joined(samples: Sequence[Sample]) -> Iterator[NDArray[np.float64]]:
    return (np.concatenate(values) for values in zip(*samples, strict=True))


def auc(high: NDArray[np.float64], low: NDArray[np.float64]) -> float | None:
    """Share of pairs in which the first value is above the second, ties half; None without pairs.

    >>> auc(np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    0.875
    """
    if not (len(high) and len(low)):
        return None
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, "left")
    equal = np.searchsorted(ordered, high, "right") - below
    return float(np.mean(below + equal / 2) / len(low))


def _merged(believed: Episode, gained: Episode, enabled: Episode, hindsight: Episode) -> Episode:
    """One episode with what each settling found."""
    steps = [
        replace(
            g,
            log_prob=b.log_prob if g.log_prob is None else g.log_prob,
            enabling=e.enabling,
            hindsight_shift=h.hindsight_shift,
        )
        for b, g, e, h in zip(
            believed.steps, gained.steps, enabled.steps, hindsight.steps, strict=True
        )
    ]
    return replace(gained, steps=tuple(steps), prior_log_prob=believed.prior_log_prob)


def _with_silver(questions: Sequence[Question], retriever: Retriever) -> list[Question]:
    if not isinstance(retriever, IndexedRetriever):  # a server does not hand out its corpus
        return list(questions)
    found = with_silver(questions, retriever.documents, retriever)
    return with_answer_distances(found, retriever.documents, retriever)


def _gold_documents(
    questions: Sequence[Question], retriever: Retriever, *, constructed: bool
) -> list[tuple[Question, list[Document]]]:
    """The questions with their gold documents, from the index; none if a server has it.

    Raises:
        ValueError: If a question names no gold document, or the index holds none of any question;
            and for titles to search for, if a server has the index, or a question has no gold
            document with a title in it.
    """
    for question in questions:
        if not (question.gold_ids or question.gold_titles):
            raise ValueError(
                f"question {question.id!r} has neither gold_ids nor gold_titles, by which its "
                "searches are sorted; leave it out"
            )
    if not isinstance(retriever, IndexedRetriever):
        if constructed:
            raise ValueError(
                "--constructed reads the gold documents' titles and texts in the index, which "
                f"{type(retriever).__name__} does not hold; set environment.retriever to an index"
            )
        return []
    ids = {id_ for question in questions for id_ in question.gold_ids}
    titles = {title for question in questions for title in question.gold_titles}
    by_id: dict[str, Document] = {}  # gold documents alone: a corpus may be large
    by_title: dict[str, Document] = {}
    for document in retriever.documents:
        if document.id in ids:
            by_id[document.id] = document
        if document.title in titles:
            by_title[document.title] = document
    gold = []
    for question in questions:
        known, names = (
            (by_id, question.gold_ids) if question.gold_ids else (by_title, question.gold_titles)
        )
        gold.append((question, [known[name] for name in names if name in known]))
    if not any(documents for _, documents in gold):
        raise ValueError(
            f"no gold document of these {len(questions)} questions is in the index, so that every "
            "search would be a miss; give the index of the questions' corpus"
        )
    if constructed:
        gold = [(question, [one for one in documents if one.title]) for question, documents in gold]
        for question, documents in gold:
            if not documents:
                raise ValueError(
                    f"no gold document of question {question.id!r} is in the index with a title, "
                    "which --constructed searches for; leave the question out"
                )
    return gold


def _table_of_kinds(rows: Sequence[Mapping[str, Any]], episodes: int) -> Table:
    names = [name for name in rows[0] if name not in ("search", "found", "searches")]
    cells = [
        [row["search"], row["found"], f"{row['searches']:,}"]
        + ["" if row[n] is None else "{:+.2f} ({:.2f})".format(*row[n]) for n in names]
        for row in rows
    ]
    title = f"mean (SD) by what was found; {episodes} rollouts"
    return make_table(title, [*rows[0]], cells, text=("search", "found"))


def _table_of_aucs(
    rows: Sequence[Mapping[str, Any]], costs: Mapping[str, Mapping[str, float]]
) -> Table:
    headings = [f"{high}/{low}" for high, low in PAIRS]
    free = {"tokens": 0.0, "seconds": 0.0}
    paid = {"probability": "information gain", "belief shift": "belief", "less siblings": "belief"}
    table = []
    for row in rows:
        name = row["signal"]
        cost = free if name in ("silver", "distance") else costs[paid.get(name, name)]
        cells = [
            "–" if row[h] is None else "{:.2f} [{:.2f}, {:.2f}]".format(*row[h]) for h in headings
        ]
        table.append([name, *cells, f"{cost['tokens']:.0f}", f"{cost['seconds']:.3f}"])
        if "update" in costs:
            rest = costs["rollouts"]["seconds"] + costs["update"]["seconds"]
            table[-1].append(f"{cost['seconds'] / (cost['seconds'] + rest):.1%}")
    title = f"AUC, 95 % interval (–: under {MIN_QUESTIONS} questions); cost per search"
    share = ["of a step"] if "update" in costs else []
    return make_table(title, ["signal", *headings, "scored tokens", "CPU s", *share], table)


if __name__ == "__main__":
    run(main)
