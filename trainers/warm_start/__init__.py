"""Supervised warm start of a policy."""
