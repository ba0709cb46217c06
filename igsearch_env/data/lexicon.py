"""The fixed words of the embedded world: names, relations and their wordings, in ``lexicon.toml``.

Every world seed and size uses the same words, so one small vocabulary serves them all. A name word
belongs to a cluster (its index modulo the number of clusters of its kind), and with informative
bridges the cluster of a subject's name narrows the object down to the few names of one cluster.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from itertools import product
from typing import Any, Literal, get_args

Kind = Literal["person", "city", "company", "country"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Relation:
    """A relation between two kinds of entities.

    Args:
        name: Identifier.
        subject: Kind of the subject.
        object: Kind of the object.
        keyword: The word that every wording of a document holds and that finds it.
        noun: How a question speaks of the object: "the {noun} of {subject}".
        wordings: Sentences with ``{s}`` (subject) and ``{o}`` (object).
    """

    name: str
    subject: Kind
    object: Kind
    keyword: str
    noun: str
    wordings: tuple[str, ...]


def _names(parts: dict[str, str]) -> tuple[str, ...]:
    return tuple(map("".join, product(parts["starts"].split(), parts["ends"].split())))


_WORDS: dict[str, Any] = tomllib.loads(
    resources.files("igsearch_env.data").joinpath("lexicon.toml").read_text(encoding="utf-8")
)

FIRST_NAMES = _names(_WORDS["first_names"])
NAME_WORDS: dict[Kind, tuple[str, ...]] = {k: _names(_WORDS["name_words"][k]) for k in KINDS}
"""The word that a name of each kind is known by (a person's surname, elsewhere the first word)."""

CLUSTERS: dict[Kind, int] = {kind: _WORDS["name_words"][kind]["clusters"] for kind in KINDS}
"""Number of clusters of each kind: a cluster holds 3 or 4 name words."""

RELATIONS = tuple(
    Relation(**one | {"wordings": tuple(one["wordings"])}) for one in _WORDS["relations"]
)
DISTRACTORS = tuple(_WORDS["distractors"])
"""Documents that name a subject and a relation's keyword but state no fact."""

QUESTION: str = _WORDS["question"]
QUESTION_PART: str = _WORDS["question_part"]
