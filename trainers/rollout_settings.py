"""How episodes are played where another engine samples: settings that travel as text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Question
from igsearch_env.files import write_json
from igsearch_env.gain.information_gain import InformationGain
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.record import to_record
from igsearch_env.settings import EnvironmentSettings, check_worlds, make_engine
from trainers.steady import FAILED_TRIES, MAX_FAILED_SEARCHES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class RolloutSettings(EnvironmentSettings):
    """The environment, and how its episodes are played; questions and retriever must be given.

    Each rollout worker opens the retriever for itself: a server is shared, the folder of an index
    is not.

    Args:
        eval_questions: Questions held out for evaluation; empty for none. They are scored by exact
            match where ``outcome`` is ``"zero"``.
        max_new_tokens: Longest turn, in tokens.
        scorer: Where answers are scored: by the ``"policy"`` that is trained, right after it has
            computed the log-probabilities of the rollouts, or by the ``"vllm"`` engine that
            sampled them.
        pool_seed: Of the draws of counterfactuals.
        max_failed_searches: Largest share of the searches of a step that may fail; of a step with
            more of them nothing is learned.
        failed_tries: The run ends when so many such steps come in a row.

    Raises:
        ValueError: If a number is out of range or a word is unknown.
    """

    # No defaults: a cluster is not to train on the embedded world by mistake.
    questions: str = field()
    retriever: str = field()
    eval_questions: str = ""
    max_new_tokens: int = 512
    scorer: Literal["policy", "vllm"] = "policy"
    pool_seed: int = 0
    max_failed_searches: float = MAX_FAILED_SEARCHES
    failed_tries: int = FAILED_TRIES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_questions:
            for retriever in (self.retriever, self.searched):
                check_worlds(self.eval_questions, retriever)
        if not 0 <= self.max_failed_searches <= 1 or self.failed_tries < 1:
            raise ValueError(
                "max_failed_searches must be from 0 to 1 and failed_tries at least 1, got "
                f"{self.max_failed_searches} and {self.failed_tries}"
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.scorer not in ("policy", "vllm"):
            raise ValueError(f"scorer must be 'policy' or 'vllm', got {self.scorer!r}")

    def to_json(self) -> str:
        """All of it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What :meth:`to_json` wrote."""
        return cls(**json.loads(text))

    def tag_protocol(self, tokenizer: PreTrainedTokenizerFast) -> TagProtocol:
        """The grammar, in the words of the tokenizer's chat template if that is asked for."""
        from agents.chat import protocol_for  # loads transformers, for which flags need not wait

        return protocol_for(self.protocol, tokenizer)

    def frozen(self, tokenizer: PreTrainedTokenizerFast, file: Path) -> Self:
        """The same settings with their grammar written to a file, which every worker reads.

        A chat template may print today's date, and is asked once a run.

        Args:
            tokenizer: The policy's.
            file: The file, by its absolute path; one that is there is kept.
        """
        if not file.is_file():
            write_json(file, asdict(self.tag_protocol(tokenizer)))
        return replace(self, protocol=str(file))

    def information_gain(self, tokenizer: PreTrainedTokenizerFast) -> InformationGain:
        """How gains are computed."""
        return self.make_information_gain(self.tag_protocol(tokenizer))

    def engine(self, tokenizer: PreTrainedTokenizerFast) -> SearchQAEngine:
        """The environment's engine; gains are left to be settled afterwards.

        Raises:
            ValueError: If the questions or the retriever cannot be had, or do not fit together.
        """
        if self.keep_documents is not None or self.drop_thoughts:
            raise ValueError(
                "this trainer takes one sequence per episode, and a managed context needs several; "
                "leave out keep_documents and drop_thoughts, or train with scripts.train"
            )
        from agents.tokenization import SegmentTokenizer  # loads transformers, see tag_protocol

        return make_engine(
            scorer=None,
            settings=self,
            protocol=self.tag_protocol(tokenizer),
            tokenizer=SegmentTokenizer(tokenizer) if self.budgets.cuts else None,
            pool=EvidencePool(seed=self.pool_seed),
        )


def make_label(question: Question, *, training: bool) -> str:
    """What a row of the prompt data says of its question: all of it, and what it is asked for."""
    return json.dumps({"question": to_record(question), "training": training})


def read_label(label: str) -> tuple[Question, bool]:
    """The question of a row, and whether it is asked for training."""
    record: dict[str, Any] = json.loads(label)
    return Question(**record["question"]), bool(record["training"])
