"""A compressed prefix tree over token sequences: every shared prefix appears once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Trie:
    """Unique tokens, numbered so that a node is a range and every ancestor comes first.

    Numbers follow a depth-first walk. A node is a run of tokens without a branch.

    Args:
        ids: Token ids, shape (tokens,).
        parents: Number of the token before each token, or -1, shape (tokens,).
        paths: For each sequence, the numbers of its tokens, shape (length,) each.
        starts: Number of each node's first token, shape (nodes,).
        lengths: Number of tokens of each node that another token follows, shape (nodes,). A last
            token predicts nothing, so it need not be run; a node can be left with 0.
        depths: Position of each node's first token in its sequences, shape (nodes,).
        held: Whether the node's keys and values are there already, shape (nodes,).
        waves: Number of nodes to be run above each node, shape (nodes,).
        owners: A sequence that passes through each node, shape (nodes,).
        inner: Whether a node lies below whose tokens need these, shape (nodes,).
    """

    ids: Ints
    parents: Ints
    paths: list[Ints]
    starts: Ints
    lengths: Ints
    depths: Ints
    held: NDArray[np.bool_]
    waves: Ints
    owners: Ints
    inner: NDArray[np.bool_]

    @property
    def run(self) -> NDArray[np.bool_]:
        """Which nodes are to be run, shape (nodes,)."""
        return ~self.held & (self.lengths > 0)

    def ancestors(self, node: int) -> Ints:
        """Numbers of the tokens above a node, in reading order, shape (depth,)."""
        path = self.paths[int(self.owners[node])]
        return path[: int(self.depths[node])]


def build_trie(
    sequences: Sequence[Sequence[int]],
    held: Sequence[Sequence[int]] = (),
    scored: Sequence[int] = (),
) -> Trie:
    """Build the trie of token sequences.

    Args:
        sequences: Token ids, each sequence at least one token long. Duplicates and prefixes of
            one another are welcome.
        held: Further sequences, whose keys and values are there already; their paths come last.
        scored: How many tokens at the end of each of ``sequences`` are to be scored. What precedes
            one of them has to be run: nothing of a held sequence counts from there on.
    """
    numbered = _number([*sequences, *held])
    # A token is *used* if it has to be read for a score, *known* if its keys and values are there.
    # The token before a scored one must be run even if its keys are known, for they hold no logits,
    # and so must all that follows it on a known path, which would otherwise precede its parent.
    size = len(numbered.ids)
    used, predicts, known = (np.zeros(size, np.bool_) for _ in range(3))
    for path in numbered.paths[: len(sequences)]:
        used[path] = True
    for path, count in zip(numbered.paths, scored, strict=False):
        predicts[path[-count - 1 : -1]] = True
    for path in numbered.paths[len(sequences) :]:
        known[path[np.cumsum(predicts[path]) == 0]] = True
    return _with_nodes(numbered, known, used | known)


class _Numbered(NamedTuple):
    """The unique tokens; see :class:`Trie`. ``creators`` names a sequence that has the token."""

    ids: Ints
    parents: Ints
    creators: Ints
    paths: list[Ints]


def _number(sequences: Sequence[Sequence[int]]) -> _Numbered:
    """Number the unique tokens of sequences, depth first."""
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    # Big-endian bytes compare like the numbers they hold, so neighbours share the most.
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].astype(">u8").tobytes())
    paths: list[Ints] = [np.empty(0, np.int64)] * len(arrays)
    ids, parents, creators = [], [], []
    total = 0
    previous: int | None = None
    # In sorted order a sequence shares with no earlier one a longer prefix than with its neighbour.
    # So one comparison a sequence finds every shared token, and numbers given along the way follow
    # a depth-first walk.
    for index in order:
        shared = 0 if previous is None else _shared(arrays[previous], arrays[index])
        head = paths[index if previous is None else previous][:shared]
        added = len(arrays[index]) - shared
        new = np.arange(total, total + added)
        paths[index] = np.concatenate((head, new))
        ids.append(arrays[index][shared:])
        if added:
            parents.append(np.concatenate((head[-1:] if shared else [-1], new[:-1])))
            creators.append(np.full(added, index))
        total += added
        previous = index
    return _Numbered(_join(ids), _join(parents), _join(creators), paths)


def _with_nodes(numbered: _Numbered, known: NDArray[np.bool_], used: NDArray[np.bool_]) -> Trie:
    """Part the tokens into nodes, each of them wholly known or not, and wholly used or not."""
    ids, parents, creators, paths = numbered
    numbers = np.arange(len(ids))
    children = np.bincount(parents[used & (parents >= 0)], minlength=len(ids))
    # A node ends where the path branches, and where it passes from known to unknown tokens or from
    # used to unused ones: a node is run, loaded or left out as a whole.
    begins = (parents != numbers - 1) | (parents < 0) | (children[parents] > 1)
    begins |= (known[parents] & ~known) | (used[parents] & ~used)
    starts = numbers[begins]
    node_of = np.cumsum(begins) - 1
    ends = np.append(starts, len(ids))[1:]
    # Nothing follows the last token of an answer, so running it would predict nothing.
    lengths = np.where(used[starts], ends - starts - (children[ends - 1] == 0), 0)
    above = np.where(parents[starts] >= 0, node_of[parents[starts]], -1)
    held = known[starts]
    waves: list[int] = []
    depths: list[int] = []
    for node, parent in enumerate(above.tolist()):  # parents come first
        # Held nodes are loaded, not run: the nodes below one can run in the same wave as it.
        waves.append((waves[parent] + 1 if parent >= 0 else 0) - int(held[node]))
        depths.append(depths[parent] + int(ends[parent] - starts[parent]) if parent >= 0 else 0)
    inner = np.zeros(len(starts), dtype=np.bool_)
    inner[above[(above >= 0) & (lengths > 0)]] = True
    return Trie(
        ids=ids,
        parents=parents,
        paths=paths,
        starts=starts,
        lengths=lengths,
        depths=np.array(depths, np.int64),
        held=held,
        waves=np.array(waves, np.int64),
        owners=creators[starts],
        inner=inner,
    )


def _shared(left: Ints, right: Ints) -> int:
    """Length of the common prefix."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size


def _join(parts: list[Ints]) -> Ints:
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)
