"""Search-augmented question answering as a Gymnasium environment with per-step information gain.

>>> import gymnasium
>>> env = gymnasium.make("igsearch_env:igsearch/SearchQA-v0")
>>> observation, info = env.reset(seed=0)
"""

from gymnasium.envs.registration import register

from igsearch_env.agent import Agent, register_agent
from igsearch_env.completion import Completion
from igsearch_env.credit import CreditAssignment, make_credit, register_credit
from igsearch_env.data.corpus import load_corpus
from igsearch_env.data.questions import load_questions
from igsearch_env.data.world import World
from igsearch_env.env import SearchQAEnv
from igsearch_env.episode import Document, Episode, Evidence, OutcomePart, Question, Segment, Step
from igsearch_env.gain.belief import settle_belief
from igsearch_env.gain.information_gain import InformationGain, information_gain
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.gain.scorer import AnswerScorer, UnigramScorer
from igsearch_env.gain.shaping import Shaping
from igsearch_env.outcome import OutcomeFailedError, WeightedOutcome, register_component
from igsearch_env.plugins import import_plugin
from igsearch_env.protocol.tags import PROTOCOLS, TagProtocol
from igsearch_env.protocol.tool_calls import ToolCallProtocol
from igsearch_env.retrieval.base import RetrievalError, Retriever
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder
from igsearch_env.retrieval.fusion import FusionRetriever
from igsearch_env.retrieval.open import open_retriever, register_retriever
from igsearch_env.settings import EnvironmentSettings
from igsearch_env.vector_env import SearchQAVectorEnv

register(
    id="igsearch/SearchQA-v0",
    entry_point="igsearch_env.env:SearchQAEnv",
    vector_entry_point="igsearch_env.vector_env:SearchQAVectorEnv",
)

__all__ = [
    "PROTOCOLS",
    "Agent",
    "AnswerScorer",
    "BM25Retriever",
    "Completion",
    "CreditAssignment",
    "DenseRetriever",
    "Document",
    "EncoderSettings",
    "EnvironmentSettings",
    "Episode",
    "Evidence",
    "EvidencePool",
    "FusionRetriever",
    "InformationGain",
    "OutcomeFailedError",
    "OutcomePart",
    "Question",
    "RetrievalError",
    "Retriever",
    "SearchQAEnv",
    "SearchQAVectorEnv",
    "Segment",
    "SentenceEncoder",
    "Shaping",
    "Step",
    "TagProtocol",
    "ToolCallProtocol",
    "UnigramScorer",
    "WeightedOutcome",
    "World",
    "import_plugin",
    "information_gain",
    "load_corpus",
    "load_questions",
    "make_credit",
    "open_retriever",
    "register_agent",
    "register_component",
    "register_credit",
    "register_retriever",
    "settle_belief",
]
