"""What scoring and training cost, in floating-point operations, from lengths and a model's shape.

A product of (m, k) and (k, n) matrices takes ``2 m n k`` operations; norms, activations, softmax,
rotary embeddings and the optimizer are left out. For each layer a token costs::

    2 d (h + 2 g) s    queries, keys and values        d: width, h heads, g key-value heads, head
    2 h s d            output of attention             size s, f: width of the feed-forward part
    6 d f              gate, up and down projections

and a pair of a token and a position that it attends to ``4 h s``: half of it for its score, half
for its share of the values. Logits at one position cost ``2 d V``, V the size of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The shape of a decoder with gated feed-forward layers (Qwen2, Qwen3, Llama, Mistral).

    Args:
        layers: Number of layers.
        hidden: Width of the hidden states.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        head_dim: Size of a head.
        feed_forward: Inner width of the feed-forward part.
        vocabulary: Number of logits.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int

    @property
    def token_flops(self) -> int:
        """Operations per token in all layers, attention scores and values aside."""
        projections = 2 * self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return self.layers * (projections + 6 * self.hidden * self.feed_forward)

    @property
    def pair_flops(self) -> int:
        """Operations per pair of a token and a position that it attends to, in all layers."""
        return 4 * self.layers * self.heads * self.head_dim

    @property
    def logit_flops(self) -> int:
        """Operations for the logits at one position."""
        return 2 * self.hidden * self.vocabulary


QWEN25_3B = ModelShape(
    layers=36,
    hidden=2048,
    heads=16,
    kv_heads=2,
    head_dim=128,
    feed_forward=11_008,
    vocabulary=151_936,
)
"""Qwen2.5-3B, the model of the IG-Search paper."""


@dataclass(frozen=True)
class RolloutShape:
    """Lengths of a rollout with T searches, in tokens, and the number of counterfactuals.

    Args:
        searches: T. Each is scored in 1 + N contexts, which end with the refinement after it.
        counterfactuals: N.
        prompt: Tokens of the prompt.
        query: Tokens of a turn's thoughts and query.
        documents: Tokens of the documents that a search returns.
        refinement: Tokens of the refinement of them.
        opening: Tokens of the answer's opening tag.
        answer: Tokens of the gold answer.
    """

    searches: int
    counterfactuals: int = 3
    prompt: int = 200
    query: int = 60
    documents: int = 500
    refinement: int = 100
    opening: int = 3
    answer: int = 5

    @property
    def contexts(self) -> int:
        """Number of contexts that are scored: T (1 + N)."""
        return self.searches * (1 + self.counterfactuals)

    @property
    def evidence(self) -> int:
        """Tokens in which the contexts of a search differ: documents and refinement."""
        return self.documents + self.refinement

    @property
    def scored(self) -> int:
        """Tokens of the opening tag and the answer."""
        return self.opening + self.answer

    def before(self, search: int) -> int:
        """Tokens before the documents of a search, counted from 0."""
        return self.prompt + search * (self.query + self.evidence) + self.query

    def length(self, search: int) -> int:
        """Tokens of a context of a search, the answer included."""
        return self.before(search) + self.evidence + self.scored


@dataclass(frozen=True)
class Work:
    """What a forward pass does.

    Args:
        tokens: Tokens run through the layers, padding included.
        pairs: Pairs of a token and a position for which attention is computed.
        logits: Positions at which logits are computed.
    """

    tokens: int
    pairs: int
    logits: int

    def flops(self, model: ModelShape) -> int:
        """Operations of the pass."""
        layers = self.tokens * model.token_flops + self.pairs * model.pair_flops
        return layers + self.logits * model.logit_flops


def padded(rollout: RolloutShape, *, full_logits: bool = True) -> Work:
    """Scoring all contexts padded to the longest; a mask spares no pair.

    Args:
        rollout: The rollout.
        full_logits: Logits at every position, or else at the answers' tokens and the one before.
    """
    width = rollout.length(rollout.searches - 1)
    tokens = rollout.contexts * width
    logits = tokens if full_logits else rollout.contexts * (rollout.answer + 1)
    return Work(tokens, tokens * width, logits)


def one_by_one(rollout: RolloutShape) -> Work:
    """Scoring each context by a causal pass of its own, logits at the answer."""
    branches = 1 + rollout.counterfactuals
    lengths = [rollout.length(search) for search in range(rollout.searches)]
    return Work(
        tokens=branches * sum(lengths),
        pairs=branches * sum(_causal(0, length) for length in lengths),
        logits=rollout.contexts * (rollout.answer + 1),
    )


def trie(rollout: RolloutShape) -> Work:
    """Scoring every unique token once, the last token of each answer spared, logits at the answer.

    Counterfactual documents, refinements and answers are taken to be distinct.
    """
    leaf = rollout.scored - 1
    tokens, pairs = rollout.prompt, _causal(0, rollout.prompt)
    for search in range(rollout.searches):
        start = rollout.before(search)
        branches = 1 + rollout.counterfactuals
        tokens += rollout.query + branches * (rollout.evidence + leaf)
        pairs += _causal(start - rollout.query, rollout.query)
        pairs += branches * _causal(start, rollout.evidence + leaf)
    return Work(tokens, pairs, rollout.contexts * rollout.answer)


def transcript(rollout: RolloutShape) -> Work:
    """One pass over the rollout itself, logits at the tokens that the policy wrote."""
    tokens = rollout.length(rollout.searches - 1)
    written = rollout.searches * (rollout.query + rollout.refinement) + rollout.scored
    return Work(tokens, _causal(0, tokens), written)


def update_flops(rollout: RolloutShape, model: ModelShape) -> int:
    """A training update on one rollout: five passes over the transcript.

    These are the log-probabilities of the old and of the reference policy, the forward pass, and
    the backward pass, which takes two. Recomputing activations would take one more.
    """
    return 5 * transcript(rollout).flops(model)


def _causal(start: int, count: int) -> int:
    """Pairs of ``count`` tokens after ``start`` others with themselves and all before them."""
    return count * start + count * (count + 1) // 2
