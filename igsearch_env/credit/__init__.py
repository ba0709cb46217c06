"""Credit assignment: from finished episodes to one advantage per policy token.

A method is a function of a batch of episodes (several groups) that returns one array of shape
(policy tokens,) per episode. Its options are fields of a frozen dataclass, bound when it is built:

>>> from igsearch_env.credit import make_credit
>>> make_credit("ig_search", alpha=0.3).normalizer
'query'
"""

from igsearch_env.credit.controls import AnswerStringBonus, IGPermuted, OracleBonus
from igsearch_env.credit.gigpo import GiGPO, GiGPOCode
from igsearch_env.credit.ig_search import IGSearch, IGSearchPaper
from igsearch_env.credit.igpo import IGPO, IGPOCode, IGPOWithIGSearch
from igsearch_env.credit.mr_search import MRSearch
from igsearch_env.credit.outcome import GRPO, RLOO, Reinforce
from igsearch_env.credit.query_bonus import QueryBonus
from igsearch_env.credit.registry import (
    CREDIT,
    CreditAssignment,
    credit_at,
    make_credit,
    register_credit,
)
from igsearch_env.credit.silver_chain import SilverChain

__all__ = [
    "CREDIT",
    "GRPO",
    "IGPO",
    "RLOO",
    "AnswerStringBonus",
    "CreditAssignment",
    "GiGPO",
    "GiGPOCode",
    "IGPOCode",
    "IGPOWithIGSearch",
    "IGPermuted",
    "IGSearch",
    "IGSearchPaper",
    "MRSearch",
    "OracleBonus",
    "QueryBonus",
    "Reinforce",
    "SilverChain",
    "credit_at",
    "make_credit",
    "register_credit",
]
