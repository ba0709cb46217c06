"""An episode as most trainers know a sample: a prompt, and one completion."""

from __future__ import annotations

from dataclasses import dataclass

from agents.tokenization import SegmentTokenizer
from igsearch_env.episode import Episode
from trainers.local.token_batch import episode_tokens


@dataclass(frozen=True)
class OneCompletion:
    """What follows the prompt is one completion, up to the last token that the policy wrote.

    Args:
        prompt_ids: Ids of the prompt.
        completion_ids: Ids of the turns and of what the environment wrote between them; at least
            one.
        log_probs: Of each token of the completion, in nats; 0 where the environment wrote. None if
            the policy gave none.
        written: Which tokens of the completion the policy wrote.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    log_probs: list[float] | None
    written: list[bool]

    @classmethod
    def of(cls, episode: Episode, tokenizer: SegmentTokenizer) -> OneCompletion:
        """Tokenise a finished episode; sampled ids are used as they are.

        Args:
            episode: A finished episode.
            tokenizer: The policy's.

        Raises:
            ValueError: If a turn has no token ids, or the context of the episode was managed.
        """
        ids, written = episode_tokens(episode, tokenizer)
        start = len(tokenizer.encode_context((episode.prompt,)))
        if len(ids) <= start:  # the prompt left no room for a turn, and trainers want a token
            ids = [*ids[:start], tokenizer.tokenizer.eos_token_id or 0]
            written = [False] * (start + 1)
        given = [step.log_probs for step in episode.steps if step.turn.token_ids]
        log_probs = None
        if all(values is not None for values in given):
            values = iter([value for row in given for value in row or ()])
            log_probs = [next(values) if mine else 0.0 for mine in written[start:]]
        return cls(ids[:start], ids[start:], log_probs, written[start:])
