"""Agents behind an OpenAI-compatible endpoint."""
