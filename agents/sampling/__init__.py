"""Sampling turns from a causal language model."""
