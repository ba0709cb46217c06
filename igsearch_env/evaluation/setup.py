"""From the settings of an evaluation to its objects: questions, retriever, environment, agent."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igsearch_env.agent import AGENTS, Agent
from igsearch_env.answers import ANSWER_RULE
from igsearch_env.baselines import SCRIPTED, make_scripted
from igsearch_env.budgets import TokenCounter
from igsearch_env.checkpoint_settings import RULES, CheckpointSettings
from igsearch_env.data.benchmarks import BENCHMARKS
from igsearch_env.data.corpus import load_corpus, read_corpus
from igsearch_env.data.questions import QuestionSet, load_question_set
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Document, Question
from igsearch_env.evaluation.play import Chunk, make_chunks
from igsearch_env.evaluation.settings import EvaluationSettings
from igsearch_env.gain.scorer import AnswerScorer, UnigramScorer
from igsearch_env.protocol.names import get_protocol, protocol_record, variant_of
from igsearch_env.protocol.tags import NO_FRAME, PROTOCOLS, TagProtocol
from igsearch_env.record import to_record
from igsearch_env.retrieval.base import Retriever
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.document_file import DocumentFile
from igsearch_env.retrieval.index_directory import MANIFEST, check_replaceable
from igsearch_env.retrieval.open import RETRIEVERS, index_folder, open_retriever
from igsearch_env.settings import EnvironmentSettings, check_worlds, make_engine
from igsearch_env.threads import set_threads

if TYPE_CHECKING:
    from igsearch_env.endpoint import Dialect
    from igsearch_env.endpoint.client import Endpoint
    from igsearch_env.endpoint.scorer import EndpointScorer

NAMES = ("questions", "retriever", "judge", "judge_cache")  # where things are, not what they are
ALL = "benchmarks"
"""Name that stands for all seven benchmarks."""
CHECKOUT = Path(__file__).resolve().parents[2]
"""The checkout that the library lies in, if it is not installed from a wheel."""
ENDPOINT_TOKENS = 512
BATCH, CPU_BATCH = 128, 16  # questions side by side
MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Player:
    """Who plays an evaluation, and what the evaluation needs to know of it.

    Args:
        agent_of: Makes the agent of a chunk.
        protocol: The tag grammar that it writes.
        model: What it is, for the manifest, as JSON-ready data.
        chunk_size: Questions that are played side by side, and played again after a kill: all of a
            batch, whose members change each other's last bits; one at an endpoint.
        trained_in: The rules of the environment that it was trained in.
        scorer: Scores answers for information gain.
        workers: Chunks that are played at once.
        refused: What an endpoint said of each question that it refused.
        stop: Ends what is under way.
        tokenizer: Counts the tokens that budgets limit, where it is at hand.
    """

    agent_of: Callable[[Chunk], Agent]
    protocol: TagProtocol
    model: dict[str, Any]
    chunk_size: int
    trained_in: EnvironmentSettings = RULES
    scorer: AnswerScorer = field(default_factory=UnigramScorer)
    workers: int = 1
    refused: Mapping[tuple[str, str], str] = field(default_factory=dict)
    stop: Callable[[], None] = lambda: None
    tokenizer: TokenCounter | None = None


@dataclass(frozen=True)
class Evaluation:
    """The objects of an evaluation.

    Args:
        engine: Rules, retriever and, for information gain, the scorer.
        player: Who plays.
        chunks: What is asked, in the order of the results.
        inputs: What the results depend on besides the settings, as JSON-ready data.
    """

    engine: SearchQAEngine
    player: Player
    chunks: Sequence[Chunk]
    inputs: dict[str, Any]


def make_evaluation(
    config: EvaluationSettings,
    say: Callable[[str], None] = lambda line: None,
    show_progress: bool = False,
) -> Evaluation:
    """Load everything that an evaluation needs, and check it.

    Args:
        config: The settings.
        say: Shows a line to the user, about each question set and each part that takes long.
        show_progress: Whether to show bars while an index is built.

    Raises:
        ValueError: If an input is missing, damaged or does not fit the others.
    """
    for name in config.questions:
        check_worlds(name, config.corpus or config.index or "")
    names = [
        name for asked in config.questions for name in (BENCHMARKS if asked == ALL else (asked,))
    ]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(repeated))} is asked for more than once")
    sets = [load_question_set(name, config.limit, config.benchmarks) for name in names]
    for one in sets:
        say(str(one))
    _check_ids(sets)
    questions = [question for one in sets for question in one.questions]
    # A model may fail to load, and an index takes longer: so the model comes first.
    player = None if config.agent in SCRIPTED else _model_player(config, len(questions), say)
    retriever = _retriever(config, say, show_progress)
    player = player or scripted_player(config, getattr(retriever, "documents", ()))
    # What only training makes use of does not follow a policy into its evaluation.
    training_only = {
        name: getattr(EnvironmentSettings(), name)
        for name in (
            *("outcome", "outcome_range", "judge", "judge_model", "judge_cache"),
            *("information_gain_weight", "shared_counterfactuals"),
        )
    }
    rules = replace(player.trained_in, **{**training_only, **config.environment})
    engine = make_engine(
        questions,
        retriever,
        player.scorer if config.information_gain else None,
        settings=rules,
        protocol=player.protocol,
        tokenizer=player.tokenizer,
        num_counterfactuals=rules.num_counterfactuals if config.information_gain else 0,
    )
    inputs = {
        "questions_sha256": _sha256(questions),
        "questions": [_set_record(one) for one in sets],
        "model": player.model,
        **{name: value for name, value in to_record(rules).items() if _says(name, value)},
        "answer_rule": ANSWER_RULE,
        "protocol": protocol_record(player.protocol),
        "prompt_sha256": hashlib.sha256(player.protocol.prompt.encode()).hexdigest(),
        "scorer": type(player.scorer).__name__ if config.information_gain else None,
        **_index_record(config, retriever),
    }
    size, samples = player.chunk_size, config.samples
    chunks = make_chunks(questions, seed=config.seed, size=size, samples=samples)
    return Evaluation(engine, player, chunks, inputs)


def _says(name: str, value: Any) -> bool:
    """Whether a rule is written down: without those that are not set, old folders still resume."""
    return name not in NAMES and (value is not None or name == "protocol")


def _check_ids(sets: Sequence[QuestionSet]) -> None:
    """Refuse sets that share an id, before the index takes its time."""
    holders: dict[str, str] = {}
    for one in sets:
        for question in one.questions:
            if question.id in holders:
                raise ValueError(
                    f"{holders[question.id]} and {one.name} both have a question {question.id!r}; "
                    "ids must be unique among all sets that are asked for: rename them, or "
                    "evaluate the sets apart"
                )
            holders[question.id] = one.name


def _set_record(one: QuestionSet) -> dict[str, Any]:
    return {
        "name": one.name,
        "source": one.source,
        "split": one.split,
        "size": len(one.questions),
        "size_as_published": one.whole,
        "sha256": _sha256(one.questions),
    }


def _retriever(
    config: EvaluationSettings, say: Callable[[str], None], show_progress: bool
) -> Retriever:
    """What is searched: the index, built from the corpus if its folder is not there yet."""
    name, corpus = config.index or "", config.corpus
    if name.partition(":")[0] in (*RETRIEVERS, "http", "https"):  # as open_retriever has it
        return open_retriever(name)
    folder = Path(index_folder(name)) if name else None
    if folder is not None and folder.exists() and not _is_empty(folder):
        saved: Retriever = open_retriever(folder if str(folder) == name else name)
        known = getattr(saved, "corpus_sha256", None)
        if corpus and known is None:
            say(f"whether the index in {folder} is of {corpus} cannot be told")
        elif corpus and DocumentFile.sha256(read_corpus(corpus)) != known:
            raise ValueError(
                f"the index in {folder} was built from another corpus than {corpus}; choose "
                "another folder, or leave out --corpus to search what the index holds"
            )
        return saved
    if not corpus:
        raise ValueError(
            f"there is no index in {name}; give --corpus to build it there (names of your own need "
            "--import FILE)"
        )
    if folder is not None:
        check_replaceable(folder)  # before the work, not after it
    documents = load_corpus(corpus)
    say(f"indexing {len(documents):,} documents of {corpus}")
    retriever = BM25Retriever.build(documents, show_progress=show_progress)
    if folder is not None:
        retriever.save(folder)
        say(f"saved the index: {folder}")
    return retriever


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _index_record(config: EvaluationSettings, retriever: Retriever) -> dict[str, Any]:
    """Hashes of the documents and of the saved index, whose manifest holds those of its files.

    Of a server nothing is known but that it is one.
    """
    described = Path(index_folder(config.index or ""), MANIFEST)
    known = bool(config.index) and described.is_file()
    return {
        "corpus_sha256": getattr(retriever, "corpus_sha256", None),
        "index_sha256": hashlib.sha256(described.read_bytes()).hexdigest() if known else None,
        "retriever": getattr(retriever, "parameters", type(retriever).__name__),
    }


def _sha256(questions: Sequence[Question]) -> str:
    lines = (json.dumps(to_record(question)) + "\n" for question in questions)
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()


def scripted_player(config: EvaluationSettings, documents: Iterable[Document]) -> Player:
    """A scripted agent; its choices depend on seed, question and sample, not on the chunk."""
    protocol = _protocol(config) or PROTOCOLS["refine"]
    known = tuple(documents) if config.agent == "oracle" else ()

    @lru_cache(maxsize=1)
    def agent(sample: int) -> Agent:
        return make_scripted(config.agent, protocol, known, _seed(config, sample))

    return Player(
        lambda chunk: agent(chunk.sample),
        protocol,
        {"scripted": config.agent},
        config.batch_size or BATCH,
    )


def _model_player(config: EvaluationSettings, questions: int, say: Callable[[str], None]) -> Player:
    if config.at_endpoint:
        return _endpoint(config, questions, say)
    if config.agent.partition(":")[0] in AGENTS:
        return _registered(config)
    return _checkpoint(config, say)


def _registered(config: EvaluationSettings) -> Player:
    """An agent of the user's own, made afresh for each chunk."""
    protocol = _protocol(config) or PROTOCOLS["refine"]
    make = AGENTS[config.agent.partition(":")[0]]
    return Player(
        lambda chunk: make(config.agent, protocol, chunk.seed),
        protocol,
        {"registered": config.agent},
        config.batch_size or BATCH,
    )


def import_loading() -> Any:
    """``agents.loading`` of the checkout, which loads checkpoints with torch.

    It is the one module outside the library that the library uses. The folder of an editable
    checkout is not on the path of a console script, so it is added.

    Raises:
        ImportError: If there is no checkout or no torch; the message says what to do.
    """
    if (CHECKOUT / "agents" / "loading.py").is_file() and str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    try:
        return importlib.import_module("agents.loading")
    except ImportError as error:
        raise ImportError(
            f"a checkpoint is loaded with torch and a checkout of igsearch-env ({error}): run "
            "pip install -e '.[train,eval]' in a checkout, or serve the checkpoint (such as with "
            "vllm serve) and give the server's address as the agent"
        ) from error


def _checkpoint(config: EvaluationSettings, say: Callable[[str], None]) -> Player:
    places = (Path(config.agent), CHECKOUT / config.agent)
    folder = next((place for place in places if place.is_dir()), None)
    is_gguf = config.agent.endswith(".gguf") and Path(config.agent).is_file()
    if folder is None and not is_gguf and not HUB_NAME.fullmatch(config.agent):
        raise ValueError(
            f"unknown agent {config.agent!r}: expected "
            f"{', '.join((*SCRIPTED, *AGENTS))}, an address, the "
            "folder of a checkpoint, a .gguf file, or the name of a model on the Hugging Face hub, "
            "and nothing was found at that path; names of your own need --import FILE"
        )
    loading = import_loading()
    loading.check_device(config.device)
    set_threads(config.threads)
    # A kill loses what is under way: on a CPU, a minute's work of a small model.
    batch_size = config.batch_size or (CPU_BATCH if config.device == "cpu" else BATCH)
    say(f"loading the model {config.agent}")
    precision = loading.resolve_precision(config.precision, config.device)
    policy = loading.load_policy(
        config.agent,
        config.protocol,
        device=config.device,
        precision=precision,
        max_new_tokens=config.max_new_tokens,
        batch_size=batch_size,
        temperature=config.temperature,
    )
    if is_gguf:
        with Path(config.agent).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        sha256 = _files_sha256(folder or loading.hub_folder(config.agent))
    return Player(
        lambda chunk: policy.fresh(chunk.seed, greedy=config.greedy),
        policy.protocol,
        {
            "checkpoint_sha256": sha256,
            "max_new_tokens": policy.max_new_tokens,
            **({"precision": precision} if config.precision == "auto" else {}),
        },
        batch_size,
        policy.trained_in,
        policy.scorer(),
        tokenizer=policy.tokenizer,
    )


def _endpoint(config: EvaluationSettings, questions: int, say: Callable[[str], None]) -> Player:
    from igsearch_env.endpoint.agent import OpenAIAgent, Refusals
    from igsearch_env.endpoint.client import Endpoint

    endpoint = Endpoint(
        config.agent,
        api_key=os.environ.get(config.api_key_variable),
        retries=config.retries,
        timeout=config.timeout,
    )
    name = config.model
    if name is None:
        served = endpoint.models()
        if len(served) != 1:
            raise ValueError(
                f"{endpoint.url} serves {', '.join(served) or 'no model'}; name one with --model"
            )
        name = served[0]
    settings, tokenizer = CheckpointSettings(max_new_tokens=ENDPOINT_TOKENS), None
    if Path(name, "config.json").is_file():  # a server names a local checkpoint by its folder
        settings = CheckpointSettings.load(Path(name))
        try:
            tokenizer = import_loading().load_tokenizer(Path(name))
        except ImportError as error:
            say(f"asking with text, not with the checkpoint's token ids: {error}")
    protocol, tokenizer = _endpoint_protocol(config, settings, name, tokenizer)
    refusals = Refusals(int(config.max_refused * questions * config.samples))
    agent = partial(
        OpenAIAgent,
        endpoint,
        name,
        protocol,
        api=config.api,
        temperature=0.0 if config.greedy else config.temperature,
        max_new_tokens=config.max_new_tokens or settings.max_new_tokens,
        tokenizer=tokenizer,
        leave_out=config.leave_out,
        refusals=refusals,
    )
    scorer = None
    if config.scorer != "unigram":
        scorer = _endpoint_scorer(config, config.scorer, endpoint, name, tokenizer)

    def stop() -> None:
        endpoint.close()
        if scorer is not None:
            scorer.endpoint.close()

    shown = agent()
    model = {"name": name, "api": shown.api, "max_new_tokens": shown.max_new_tokens}
    model |= {"token_ids": tokenizer is not None and shown.api == "completions"}
    return Player(
        lambda chunk: agent(seed=_seed(config, chunk.sample)),
        shown.protocol,
        model,
        1,
        settings.trained_in,
        scorer or UnigramScorer(),
        workers=config.concurrency,
        refused=refusals.reasons,
        stop=stop,
        tokenizer=tokenizer,
    )


def _endpoint_scorer(
    config: EvaluationSettings, dialect: Dialect, endpoint: Endpoint, model: str, tokenizer: Any
) -> EndpointScorer:
    """The served model itself as a scorer.

    Raises:
        ValueError: If its tokenizer cannot be had.
    """
    from igsearch_env.endpoint.client import Endpoint
    from igsearch_env.endpoint.scorer import EndpointScorer

    tokenizer = tokenizer or _model_tokenizer(model, f"--scorer {dialect} needs")
    if dialect != "vllm" and config.agent.rstrip("/").endswith("/v1"):
        endpoint = Endpoint(  # their own API stands beside that of OpenAI
            config.agent.rstrip("/").removesuffix("/v1"),
            api_key=os.environ.get(config.api_key_variable),
            retries=config.retries,
            timeout=config.timeout,
        )
    return EndpointScorer(
        endpoint, model, tokenizer, dialect=dialect, concurrency=config.concurrency
    )


def _model_tokenizer(model: str, asking: str, instead: str = "") -> Any:
    """The tokenizer of a served model, by the model's name.

    Args:
        model: The name.
        asking: What needs it, as the beginning of a message.
        instead: What else to do, as the end of one.

    Raises:
        ValueError: If it cannot be loaded.
    """
    try:
        return import_loading().load_tokenizer(model)
    except Exception as error:  # transformers and what it is built on raise whatever they like
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"{asking} the tokenizer of {model!r}, which cannot be loaded ({reason}); name its "
            f"folder with --model{instead}"
        ) from error


def _endpoint_protocol(
    config: EvaluationSettings, settings: CheckpointSettings, model: str, tokenizer: Any
) -> tuple[TagProtocol, Any]:
    """The grammar that an endpoint's model is to write, and the tokenizer if it is known by then.

    Raises:
        ValueError: If the grammar does not go with the API, or there is no tokenizer to render it.
    """
    if config.protocol is None:
        framed = settings.protocol
        if config.api == "chat" and framed.frame != NO_FRAME:
            raise ValueError(
                f"the grammar {framed.name!r} of {model} holds its chat template, which a chat API "
                "would add once more; use --api completions"
            )
        return framed, tokenizer
    variant, base = variant_of(config.protocol)
    if variant is None or (variant, config.api) == ("chat", "chat"):
        return get_protocol(base), tokenizer  # a chat API frames the messages itself
    if config.api == "chat":
        raise ValueError(
            "a chat API reads tool calls itself and gives no text of them; use --api completions, "
            f"or --protocol chat:{base}"
        )
    asking = f"--protocol {config.protocol} is rendered by"
    tokenizer = tokenizer or _model_tokenizer(model, asking, ", or use --api chat")
    return import_loading().rendered_protocol(config.protocol, tokenizer), tokenizer


def _seed(config: EvaluationSettings, sample: int) -> int:
    return config.seed + 1_000_003 * sample


def _protocol(config: EvaluationSettings) -> TagProtocol | None:
    return None if config.protocol is None else get_protocol(config.protocol)


def _files_sha256(folder: Path) -> str:
    """A hash of everything that a checkpoint is made of: settings, weights and tokenizer."""
    digest = hashlib.sha256()
    for file in sorted(file for pattern in MODEL_FILES for file in folder.glob(pattern)):
        with file.open("rb") as opened:
            hashed = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.name} {hashed}\n".encode())
    return digest.hexdigest()
