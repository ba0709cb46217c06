from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agents.scoring.trie import Trie, build_trie

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), max_size=12)


def prefixes(sequences: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(ids[:end]) for ids in sequences for end in range(1, len(ids) + 1)}


@given(SEQUENCES)
def test_every_prefix_is_one_token(sequences: list[list[int]]) -> None:
    trie = build_trie(sequences)
    assert len(trie.ids) == len(prefixes(sequences))
    for ids, path in zip(sequences, trie.paths, strict=True):
        assert trie.ids[path].tolist() == ids
        assert trie.parents[path].tolist() == [-1, *path[:-1].tolist()]


@given(SEQUENCES)
def test_tokens_that_nothing_follows_are_not_run(sequences: list[list[int]]) -> None:
    followed = {prefix[:-1] for prefix in prefixes(sequences)} - {()}
    assert int(build_trie(sequences).lengths.sum()) == len(followed)


@given(SEQUENCES)
def test_nodes_are_ranges_below_their_ancestors(sequences: list[list[int]]) -> None:
    trie = build_trie(sequences)
    wave_of = np.repeat(trie.waves, np.diff([*trie.starts, len(trie.ids)]))
    for node, start in enumerate(trie.starts.tolist()):
        above = trie.ancestors(node)
        assert len(above) == trie.depths[node]
        assert above.tolist() == ancestors(trie, start)
        assert all(wave_of[token] < trie.waves[node] for token in above)


@given(SEQUENCES)
def test_inner_nodes_are_those_that_a_run_needs(sequences: list[list[int]]) -> None:
    trie = build_trie(sequences)
    run = [node for node in range(len(trie.starts)) if trie.lengths[node] > 0]
    needed = {token for node in run for token in trie.ancestors(node).tolist()}
    assert {n for n, start in enumerate(trie.starts.tolist()) if start in needed} == set(
        np.flatnonzero(trie.inner).tolist()
    )


def test_large_ids_keep_their_order() -> None:
    trie = build_trie([[300, 5], [2, 7], [300, 6], [150_000]])
    assert len(trie.ids) == 6
    assert len(trie.starts) == 5


def ancestors(trie: Trie, token: int) -> list[int]:
    above: list[int] = []
    while (token := int(trie.parents[token])) >= 0:
        above.append(token)
    return above[::-1]


@given(SEQUENCES, SEQUENCES, st.integers(1, 3))
def test_what_is_held_is_not_run_unless_it_predicts(
    sequences: list[list[int]], held: list[list[int]], count: int
) -> None:
    scored = [min(count, len(ids) - 1) for ids in sequences]
    trie = build_trie(sequences, held, scored)
    followed = {p[:-1] for p in prefixes(sequences)} - {()}
    predict = {
        tuple(ids[:end])
        for ids, last in zip(sequences, scored, strict=True)
        for end in range(len(ids) - last, len(ids))
    }
    spared = {
        p for p in prefixes(held) if not any(p[:end] in predict for end in range(1, len(p) + 1))
    }
    run = [node for node, flag in enumerate(trie.run.tolist()) if flag]
    assert int(trie.lengths[run].sum()) == len(followed - spared)
    for node in run:
        above = trie.ancestors(node)
        assert all(trie.inner[node_of(trie, token)] for token in above)
        nodes_above = {node_of(trie, token) for token in above}
        assert trie.waves[node] == sum(not trie.held[other] for other in nodes_above)


def node_of(trie: Trie, token: int) -> int:
    return int(np.searchsorted(trie.starts, token, side="right")) - 1
