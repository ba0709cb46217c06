"""Search-augmented question answering as a Gymnasium environment with per-step information gain.

>>> import gymnasium
>>> env = gymnasium.make("igsearch_env:igsearch/SearchQA-v0")
>>> observation, info = env.reset(seed=0)
"""

from gymnasium.envs.registration import register

from igsearch_env.agent import Agent
from igsearch_env.answer_log_probs import settle_answer_log_probs
from igsearch_env.completion import Completion
from igsearch_env.corpus import load_corpus
from igsearch_env.credit import CreditAssignment, make_credit, register_credit
from igsearch_env.env import SearchQAEnv
from igsearch_env.episode import Document, Episode, Evidence, Question, Segment, Step
from igsearch_env.evidence_pool import EvidencePool
from igsearch_env.information_gain import InformationGain, information_gain
from igsearch_env.protocol import PROTOCOLS, TagProtocol
from igsearch_env.questions import load_questions
from igsearch_env.retrieval.base import RetrievalError, Retriever
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import EncoderConfig, SentenceEncoder
from igsearch_env.retrieval.fusion import FusionRetriever
from igsearch_env.retrieval.saved_index import load_retriever
from igsearch_env.scoring import AnswerScorer, UnigramScorer
from igsearch_env.shaping import Shaping
from igsearch_env.tool_protocol import ToolCallProtocol
from igsearch_env.vector_env import SearchQAVectorEnv
from igsearch_env.world import World

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
    "EncoderConfig",
    "Episode",
    "Evidence",
    "EvidencePool",
    "FusionRetriever",
    "InformationGain",
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
    "World",
    "information_gain",
    "load_corpus",
    "load_questions",
    "load_retriever",
    "make_credit",
    "register_credit",
    "settle_answer_log_probs",
]
