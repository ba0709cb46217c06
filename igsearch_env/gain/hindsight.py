"""Hindsight: how much more probable a turn is for a policy that has been told the answer.

By Bayes' rule log p(answer | transcript) - log p(answer) is the sum, over the turns, of log p(turn
| what the policy saw, answer) - log p(turn | what it saw). So the turns share what the transcript
says about the answer, and all that is asked of the model is how probable the turns are that it
wrote (PBSD, arXiv 2606.09348).
"""

from __future__ import annotations

from collections.abc import Sequence

from igsearch_env.episode import Context, Episode, Segment, changed
from igsearch_env.gain.information_gain import InformationGain
from igsearch_env.gain.scorer import AnswerScorer


def settle_hindsight(
    episodes: Sequence[Episode], scorer: AnswerScorer, information_gain: InformationGain
) -> list[Episode]:
    """Fill in ``hindsight_shift`` of the last step of each turn.

    It is the mean log-prob per token of the turn where the gold answer stands before the prompt,
    less that where it does not, in nats. Of several gold answers the first one is told. A turn
    without text, or whose context is too long for the scorer, has no value.

    The turn is tokenised as text: control tokens in it (those of some tool calls) are scored as the
    characters that they are written with.

    Args:
        episodes: Finished episodes.
        scorer: Scores the turns, with the weights that sampled; one call is made.
        information_gain: Its floor and weights of leading tokens hold here too.
    """
    places = [
        (number, index)
        for number, episode in enumerate(episodes)
        for index, step in enumerate(episode.steps)
        if index == episode.turn_of(index).stop - 1
        and step.hindsight_shift is None
        and step.turn.text.strip()
    ]
    jobs = [_job(episodes[number], index) for number, index in places]
    settled = [list(episode.steps) for episode in episodes]
    tables = information_gain.scores(jobs, scorer, lead="")
    for (number, index), table in zip(places, tables, strict=True):
        if table is not None:
            told, plain = table[0].tolist()
            settled[number][index] = changed(settled[number][index], hindsight_shift=told - plain)
    return [
        changed(episode, steps=tuple(steps))
        for episode, steps in zip(episodes, settled, strict=True)
    ]


def _job(episode: Episode, index: int) -> tuple[list[Context], tuple[str, ...]]:
    """What the policy saw, told the answer and as it was, and the whole turn that it wrote."""
    turn = episode.turn_of(index)
    seen = episode.context_before(turn.start)
    answer = episode.question.golden_answers[0]
    told = Segment(f"The answer to the question below is: {answer}\n\n", "document")
    opening = Segment("", "system")  # nothing opens a turn but what was seen
    text = "".join(step.turn.text for step in episode.steps[turn.start : turn.stop])
    return [(told, *seen, opening), (*seen, opening)], (text,)
