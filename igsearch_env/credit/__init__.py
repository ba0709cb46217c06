"""Credit assignment: from finished episodes to one advantage per policy token.

A method is a function of a batch of episodes (several groups) that returns one array of shape
(policy tokens,) per episode. Its options are fields of a frozen dataclass, bound when it is built:

>>> from igsearch_env.credit import make_credit
>>> make_credit("ig_search", alpha=0.3).normalizer
'query'
"""

from igsearch_env.credit.answer_string_bonus import AnswerStringBonus
from igsearch_env.credit.base import (
    CREDIT,
    CreditAssignment,
    Hindsight,
    assign_credit,
    make_credit,
    register_credit,
)
from igsearch_env.credit.belief_shift import TIPS, BeliefGroup, BeliefShift, DeltaBelief
from igsearch_env.credit.enabling import Enabling
from igsearch_env.credit.gdcr import GDCR
from igsearch_env.credit.gigpo import GiGPO, GiGPOCode
from igsearch_env.credit.groups import group_advantages
from igsearch_env.credit.grpo import GRPO
from igsearch_env.credit.ig_permuted import IGPermuted
from igsearch_env.credit.ig_search import IGSearch, IGSearchPaper
from igsearch_env.credit.igpo import IGPO, IGPOCode, IGPOPaper
from igsearch_env.credit.igpo_ig_search import IGPOWithIGSearch
from igsearch_env.credit.mr_search import MRSearch
from igsearch_env.credit.oracle_bonus import OracleBonus
from igsearch_env.credit.pbsd import PBSD
from igsearch_env.credit.query_bonus import QueryBonus
from igsearch_env.credit.reinforce import Reinforce
from igsearch_env.credit.rloo import RLOO
from igsearch_env.credit.sd_search import SDSearch
from igsearch_env.credit.settle import settle_for
from igsearch_env.credit.silver_chain import SilverChain
from igsearch_env.credit.silver_rollouts import SilverRollouts

__all__ = [
    "CREDIT",
    "GDCR",
    "GRPO",
    "IGPO",
    "PBSD",
    "RLOO",
    "TIPS",
    "AnswerStringBonus",
    "BeliefGroup",
    "BeliefShift",
    "CreditAssignment",
    "DeltaBelief",
    "Enabling",
    "GiGPO",
    "GiGPOCode",
    "Hindsight",
    "IGPOCode",
    "IGPOPaper",
    "IGPOWithIGSearch",
    "IGPermuted",
    "IGSearch",
    "IGSearchPaper",
    "MRSearch",
    "OracleBonus",
    "QueryBonus",
    "Reinforce",
    "SDSearch",
    "SilverChain",
    "SilverRollouts",
    "assign_credit",
    "group_advantages",
    "make_credit",
    "register_credit",
    "settle_for",
]
