"""Exact scoring of answers with a causal language model."""
