"""Retrievers: BM25, dense, fused and remote, their saved indexes, and the server."""
