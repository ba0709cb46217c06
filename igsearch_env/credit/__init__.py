"""Credit assignment: from finished episodes to one advantage per policy token.

A method is a function of a batch of episodes (several groups) that returns one array of shape
(policy tokens,) per episode. Its options are fields of a frozen dataclass, bound when it is built:

>>> from igsearch_env.credit import make_credit
>>> make_credit("ig_search", alpha=0.3).normalizer
'query'
"""

from igsearch_env.credit.controls import AnswerStringBonus, IGPermuted, OracleBonus
from igsearch_env.credit.ig_search import IGSearch, IGSearchPaper
from igsearch_env.credit.outcome import GRPO
from igsearch_env.credit.query_bonus import QueryBonus
from igsearch_env.credit.registry import (
    CREDIT,
    CreditAssignment,
    credit_at,
    make_credit,
    register_credit,
)

__all__ = [
    "CREDIT",
    "GRPO",
    "AnswerStringBonus",
    "CreditAssignment",
    "IGPermuted",
    "IGSearch",
    "IGSearchPaper",
    "OracleBonus",
    "QueryBonus",
    "credit_at",
    "make_credit",
    "register_credit",
]
