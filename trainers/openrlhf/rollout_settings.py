"""How episodes are played where another engine samples: settings that travel as text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from transformers import PreTrainedTokenizerFast

from agents.chat import chat_protocol
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Question
from igsearch_env.gain.information_gain import AliasOperator, Counterfactual, InformationGain
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.protocol.tags import TagProtocol, get_protocol
from igsearch_env.record import to_record
from igsearch_env.settings import make_engine


@dataclass(frozen=True)
class RolloutSettings:
    """What is asked, where it is searched for, and the rules.

    Args:
        questions: Training questions: a built-in set, a file, or ``hf:...``.
        retriever: URL of a retriever server, ``"bm25"`` (over the embedded world), or the folder
            of a saved index, which each rollout worker then opens for itself.
        eval_questions: Questions held out for evaluation; empty for none.
        protocol: Name of the tag grammar.
        chat: Put the prompt in the tokenizer's chat template.
        max_searches: Searches per episode.
        max_attempts: Attempts at a question, each after the first opened by a reflection prompt.
        top_k: Documents per search.
        max_new_tokens: Longest turn, in tokens.
        num_counterfactuals: N, counterfactual contexts per search.
        counterfactual: What they swap.
        floor: Floor of token log-probs in nats, ``"uniform"`` or ``"none"``.
        aliases: How several golden answers are reduced.
        outcome: ``"em"``, ``"f1"``, or ``"zero"`` to learn from information gain alone; evaluations
            are then scored by exact match.
        scorer: Where answers are scored: by the ``"policy"`` that is trained, right after it has
            computed the log-probabilities of the rollouts, or by the ``"vllm"`` engine that
            sampled them.
        pool_seed: Of the draws of counterfactuals.

    Raises:
        ValueError: If a number is out of range or a word is unknown.
    """

    questions: str
    retriever: str
    eval_questions: str = ""
    protocol: str = "refine"
    chat: bool = False
    max_searches: int = 5
    max_attempts: int = 1
    top_k: int = 3
    max_new_tokens: int = 512
    num_counterfactuals: int = 3
    counterfactual: Counterfactual = "documents+refinement"
    floor: float | Literal["uniform", "none"] = "uniform"
    aliases: AliasOperator = "max"
    outcome: Literal["em", "f1", "zero"] = "em"
    scorer: Literal["policy", "vllm"] = "policy"
    pool_seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        for name, known in (("outcome", ("em", "f1", "zero")), ("scorer", ("policy", "vllm"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    def to_json(self) -> str:
        """All of it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What :meth:`to_json` wrote."""
        return cls(**json.loads(text))

    def tag_protocol(self, tokenizer: PreTrainedTokenizerFast) -> TagProtocol:
        """The grammar, its prompt in the chat template if that is asked for."""
        protocol = get_protocol(self.protocol)
        return chat_protocol(protocol, tokenizer) if self.chat else protocol

    def information_gain(self, tokenizer: PreTrainedTokenizerFast) -> InformationGain:
        """How gains are computed."""
        return InformationGain(
            self.tag_protocol(tokenizer),
            self.counterfactual,
            floor=None if self.floor == "none" else self.floor,
            aliases=self.aliases,
        )

    def engine(self, tokenizer: PreTrainedTokenizerFast) -> SearchQAEngine:
        """The environment's engine; gains are left to be settled afterwards.

        Raises:
            ValueError: If the questions or the retriever cannot be had, or do not fit together.
        """
        gain = self.information_gain(tokenizer)
        return make_engine(
            self.questions,
            self.retriever,
            None,
            protocol=gain.protocol,
            max_searches=self.max_searches,
            max_attempts=self.max_attempts,
            top_k=self.top_k,
            num_counterfactuals=self.num_counterfactuals,
            information_gain=gain,
            outcome=_zero if self.outcome == "zero" else self.outcome,
            pool=EvidencePool(seed=self.pool_seed),
        )


def make_label(question: Question, *, training: bool) -> str:
    """What a row of the prompt data says of its question: all of it, and what it is asked for."""
    return json.dumps({"question": to_record(question), "training": training})


def read_label(label: str) -> tuple[Question, bool]:
    """The question of a row, and whether it is asked for training."""
    record: dict[str, Any] = json.loads(label)
    return Question(**record["question"]), bool(record["training"])


def _zero(answer: str | None, question: Question) -> float:
    return 0.0
