"""Evaluations: playing questions, scores, the run folder, comparisons."""
