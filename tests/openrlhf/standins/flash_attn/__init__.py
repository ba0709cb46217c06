"""Stands in for flash-attn where there is no GPU: OpenRLHF imports five names of it for packing.

Nothing here may be called; runs on a CPU do not pack.
"""
