"""An episode as plain text for a terminal: who wrote what, and what each search was worth."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from igsearch_env.completion import StopReason
from igsearch_env.episode import Document, Episode, OutcomePart, Question, Step

WIDTH = 100
SHORTENED = 240  # characters of a document
CELLS_PER_NAT = 4
CUT: dict[StopReason | None, str] = {
    "length": "the turn came to its largest number of tokens",
    "no_room": "the transcript left no room for a turn",
    "refused": "the model's server refused the request",
}
MAX_CELLS = 40


def render_text(episode: Episode) -> str:
    """The episode as text: question, turns, searches with gain and documents, and the outcome.

    Gold documents are marked with ``*``. Long documents are shortened, and characters that are not
    printable are replaced, so that no document can send commands to a terminal.

    >>> from igsearch_env.episode import Segment
    >>> question = Question("q", "Capital of Peru?", ("Lima",), hops=1)
    >>> print(render_text(Episode(question, Segment("?", "system"))))
    question  Capital of Peru? (1 hop)
    gold      Lima
    <BLANKLINE>
    outcome   not finished
    """
    question = episode.question
    known = [question.dataset] if question.dataset else []
    known += [f"{question.hops} hop{'s' * (question.hops != 1)}"] if question.hops else []
    asked = question.text + (f" ({', '.join(known)})" if known else "")
    lines = [_line("question", asked), _line("gold", " | ".join(question.golden_answers)), ""]
    for step in episode.steps:
        lines += [*_step(step, question), ""]
    lines.append(_line("outcome", _outcome(episode)))
    lines += [_line("", _part(part)) for part in episode.outcome_parts]
    if episode.unscored:
        lines.append(_line("", "the score could not be had, and nothing is learned from it"))
    return "\n".join(lines)


def is_gold(document: Document, question: Question) -> bool:
    """Whether a document is one of the question's gold documents, by id where ids are known."""
    if question.gold_ids:
        return document.id in question.gold_ids
    return document.title in question.gold_titles


def _step(step: Step, question: Question) -> Iterator[str]:
    yield _line("policy", step.turn.text)
    if step.action == "search" and not step.retrieval_failed:
        yield _line(f"{step.tool or 'search'} {step.search_step}", _gain(step))
        if step.log_prob is not None:
            others = " ".join(f"{value:.2f}" for value in step.baseline_log_probs or ())
            yield _line("", f"log-prob {step.log_prob:.2f}, with evidence of others {others}")
        for document in step.documents:
            title = f"{document.title}: " if document.title else ""
            shown = textwrap.shorten(_printable(title + document.text), SHORTENED, placeholder=" …")
            yield _line("found *" if is_gold(document, question) else "found", shown)
        if not step.documents:
            yield _line("found", "")
        if step.cut:
            yield _line("cut", f"to the budget of tokens per {', '.join(step.cut)}")
    elif step.observation is not None:
        if step.stop_reason in CUT:
            yield _line("cut", CUT[step.stop_reason])
        yield _line(step.tool or "system", step.observation.text)
    if step.reflection is not None:
        yield _line("system", step.reflection.text)


def _gain(step: Step) -> str:
    gain = step.information_gain
    if gain is None:
        return "IG not settled"
    cells = min(MAX_CELLS, round(CELLS_PER_NAT * abs(gain)))
    return f"IG {gain:+.2f} nats per answer token  {('█' if gain > 0 else '░') * cells}".rstrip()


def _outcome(episode: Episode) -> str:
    if not episode.finished:
        return "not finished"
    if episode.answer is None:
        return f"no answer before the {episode.ended_by or 'turns'} ran out"
    verdict = "right" if episode.em else "wrong"
    return f"{verdict}: {episode.answer} (EM {episode.em or 0:.0f}, F1 {episode.f1 or 0:.2f})"


def _part(part: OutcomePart) -> str:
    if part.value is None:
        return f"{part.name}: {'failed' if part.failed else 'does not apply'}"
    return f"{part.name}: {part.weight:g} x {part.value:.2f} = {part.paid:+.2f}"


def _line(label: str, text: str) -> str:
    return textwrap.fill(
        _printable(text) or "(nothing)",
        WIDTH,
        initial_indent=f"{label:<9} ",
        subsequent_indent=" " * 10,
        drop_whitespace=True,
    )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
