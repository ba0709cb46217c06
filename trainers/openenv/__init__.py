"""SearchQAEnv as an OpenEnv environment: a server of sessions, and its client."""

from igsearch_openenv.client import SearchQAClient
from igsearch_openenv.models import SearchQAAction, SearchQAObservation, SearchQAState

__all__ = ["SearchQAAction", "SearchQAClient", "SearchQAObservation", "SearchQAState"]
