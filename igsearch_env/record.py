"""Episodes as JSON: written down whole, and read back equal to what they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from igsearch_env.episode import Document, Episode, Evidence, OutcomePart, Question, Segment, Step


def to_record(value: Any) -> Any:
    """JSON-ready data of a typed value and of everything in it.

    A data class becomes a dictionary of its fields, a tuple a list, and a slice ``[start, stop]``.

    >>> to_record(Segment("Lima", "policy", (7, 9)))
    {'text': 'Lima', 'source': 'policy', 'token_ids': [7, 9], 'parts': []}
    """
    if is_dataclass(value):
        return {field.name: to_record(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_record(item) for item in value]
    return [value.start, value.stop] if isinstance(value, slice) else value


def episode_record(episode: Episode) -> dict[str, Any]:
    """Everything that is known of an episode, as JSON-ready data with the names of its fields.

    >>> episode = Episode(Question("q", "Capital of Peru?", ("Lima",)), Segment("?", "system"))
    >>> episode_from_record(episode_record(episode)) == episode
    True
    """
    record: dict[str, Any] = to_record(episode)
    return record


def episode_from_record(record: Mapping[str, Any]) -> Episode:
    """The episode that :func:`episode_record` was given.

    Raises:
        ValueError: If a field is missing, unknown or of the wrong kind.
    """
    try:
        return Episode(
            **{
                **record,
                "question": Question(**record["question"]),
                "prompt": _segment(record["prompt"]),
                "steps": tuple(_step(step) for step in record["steps"]),
                "attempt_outcomes": tuple(record["attempt_outcomes"]),
                "outcome_parts": tuple(
                    OutcomePart(**part) for part in record.get("outcome_parts", ())
                ),
            }
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"expected the record of an episode, as episode_record writes it, got one that does "
            f"not fit ({type(error).__name__}: {error}); write it again with this version"
        ) from error


def evidence_from_record(record: Mapping[str, Any]) -> Evidence:
    """The evidence that :func:`to_record` was given."""
    return Evidence(
        **{
            **record,
            "documents": _documents(record["documents"]),
            "refinement": _segment(record["refinement"]),
        }
    )


def _step(record: Mapping[str, Any]) -> Step:
    return Step(
        **{
            **record,
            "turn": _segment(record["turn"]),
            "observation": _optional_segment(record["observation"]),
            "policy_tokens": slice(*record["policy_tokens"]),
            "query_tokens": slice(*record["query_tokens"]),
            "refinement": _segment(record["refinement"]),
            "log_probs": _tuple(record["log_probs"]),
            "query_span": _tuple(record["query_span"]),
            "documents": _documents(record["documents"]),
            "cut": tuple(record.get("cut", ())),
            "counterfactuals": tuple(evidence_from_record(e) for e in record["counterfactuals"]),
            "baseline_log_probs": _tuple(record["baseline_log_probs"]),
            "reflection": _optional_segment(record["reflection"]),
            "stub": _optional_segment(record.get("stub")),
            "bare": None
            if record.get("bare") is None
            else tuple(_segment(one) for one in record["bare"]),
        }
    )


def _segment(record: Mapping[str, Any]) -> Segment:
    parts = tuple(_segment(part) for part in record.get("parts", ()))
    return Segment(**{**record, "token_ids": _tuple(record["token_ids"]), "parts": parts})


def _optional_segment(record: Mapping[str, Any] | None) -> Segment | None:
    return None if record is None else _segment(record)


def _documents(records: list[Mapping[str, Any]]) -> tuple[Document, ...]:
    return tuple(Document(**record) for record in records)


def _tuple(values: list[Any] | None) -> Any:
    return None if values is None else tuple(values)
