"""The fixed words of the embedded world: names, relations and their wordings.

Every world seed and size uses the same words, so one small vocabulary serves them all. A name word
belongs to a cluster (its index modulo the number of clusters of its kind), and with informative
bridges the cluster of a subject's name narrows the object down to the few names of one cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

Kind = Literal["person", "city", "company", "country"]


def _combine(starts: str, ends: str) -> tuple[str, ...]:
    return tuple(start + end for start, end in product(starts.split(), ends.split()))


FIRST_NAMES = _combine("Al Be Ca Do El Fa Ga Ha Jo Ka", "lia ric nor vin mira tos dan lena rus bel")
SURNAMES = _combine(
    "Ash Bran Crow Dun Fen Hol Lark Mor Stan Wend", "by ford ley man mere ner son ton well wick"
)
NAME_WORDS: dict[Kind, tuple[str, ...]] = {
    "person": SURNAMES,
    "city": _combine("Del Var Kor Lin Mar Sol Tan Ost", "mora vik stad ona burg field"),
    "company": _combine("Vor Zen Quan Hex Lum Nex Pyr Tri", "tal dyne corp soft works ics"),
    "country": _combine("Aru Bol Cas Drav Eri", "nia via land dor"),
}
"""The word that a name of each kind is known by (a person's surname, elsewhere the first word)."""

CLUSTERS: dict[Kind, int] = {"person": 28, "city": 14, "company": 14, "country": 6}
"""Number of clusters of each kind: a cluster holds 3 or 4 name words."""


@dataclass(frozen=True)
class Relation:
    """A relation between two kinds of entities.

    Args:
        name: Identifier.
        subject: Kind of the subject.
        object: Kind of the object.
        keyword: The word that every wording of a passage holds and that finds it.
        noun: How a question speaks of the object: "the {noun} of {subject}".
        wordings: Sentences with ``{s}`` (subject) and ``{o}`` (object).
    """

    name: str
    subject: Kind
    object: Kind
    keyword: str
    noun: str
    wordings: tuple[str, ...]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "born_in",
        "person",
        "city",
        "born",
        "birthplace",
        (
            "{s} was born in {o} .",
            "{o} is where {s} was born .",
            "born in {o} , {s} grew up there .",
        ),
    ),
    Relation(
        "lives_in",
        "person",
        "city",
        "lives",
        "home",
        ("{s} lives in {o} .", "{o} is where {s} lives .", "today {s} lives in {o} ."),
    ),
    Relation(
        "works_for",
        "person",
        "company",
        "works",
        "employer",
        ("{s} works for {o} .", "{o} is where {s} works .", "today {s} works at {o} ."),
    ),
    Relation(
        "invested_in",
        "person",
        "company",
        "invested",
        "investment",
        (
            "{s} invested in {o} .",
            "{o} is where {s} invested money .",
            "once {s} invested in {o} .",
        ),
    ),
    Relation(
        "admires",
        "person",
        "person",
        "admires",
        "idol",
        ("{s} admires {o} .", "{o} is whom {s} admires .", "today {s} admires {o} ."),
    ),
    Relation(
        "based_in",
        "company",
        "city",
        "based",
        "headquarters",
        ("{s} is based in {o} .", "{o} is where {s} is based .", "today {s} is based in {o} ."),
    ),
    Relation(
        "registered_in",
        "company",
        "country",
        "registered",
        "registration",
        (
            "{s} is registered in {o} .",
            "{o} is where {s} is registered .",
            "once {s} was registered in {o} .",
        ),
    ),
    Relation(
        "supplies",
        "company",
        "company",
        "supplies",
        "customer",
        ("{s} supplies {o} .", "{o} is what {s} supplies .", "today {s} supplies {o} ."),
    ),
    Relation(
        "led_by",
        "company",
        "person",
        "led",
        "director",
        ("{s} is led by {o} .", "{o} has led {s} .", "today {s} is led by {o} ."),
    ),
    Relation(
        "located_in",
        "city",
        "country",
        "located",
        "country",
        (
            "{s} is located in {o} .",
            "{o} is where {s} is located .",
            "today {s} is located in {o} .",
        ),
    ),
    Relation(
        "exports_to",
        "city",
        "city",
        "exports",
        "market",
        ("{s} exports to {o} .", "{o} is where {s} exports goods .", "today {s} exports to {o} ."),
    ),
    Relation(
        "hosts",
        "city",
        "company",
        "hosts",
        "guest",
        ("{s} hosts {o} .", "{o} is what {s} hosts .", "today {s} hosts {o} ."),
    ),
    Relation(
        "capital",
        "country",
        "city",
        "capital",
        "capital",
        ("{s} has the capital {o} .", "{o} is the capital of {s} .", "the capital of {s} is {o} ."),
    ),
    Relation(
        "president",
        "country",
        "person",
        "president",
        "president",
        (
            "{s} has the president {o} .",
            "{o} is the president of {s} .",
            "the president of {s} is {o} .",
        ),
    ),
)

DISTRACTORS: tuple[str, ...] = (
    "a story about {s} tells nothing of who was {keyword} there in those years .",
    "nobody knows what {s} said on that day when the word {keyword} was heard .",
)
"""Passages that name a subject and a relation's keyword but state no fact."""

QUESTION = "what is {} ?"
QUESTION_PART = "the {noun} of {}"
