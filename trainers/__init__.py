"""Trainers: the local one, TRL's, OpenRLHF's, and the warm start.

A trainer for another framework needs little, for which it imports what is here already:

1. *Play*: :func:`trainers.steady.collect_steadily` plays a batch of episodes with any agent that
   has ``act(episodes)``, and stops a run whose retriever is lost. Where the framework's own engine
   samples, one turn at a time, ``SearchQAEngine.step(episodes, turns)`` plays the turns instead.
2. *Settle*: :func:`igsearch_env.credit.settle_for` computes what the credit method reads (gains,
   beliefs) with a scorer over the weights that sampled, before they change.
3. *Credit*: ``credit.at(progress)(episodes)`` gives one advantage per policy token.
4. *Align*: :func:`trainers.local.token_batch.episode_tokens` gives the ids of an episode and which
   of them the policy wrote; advantages and log-probs are in the order of these. Of an episode with
   ``left_out`` no token is learned from.

:mod:`trainers.trl.rollouts` does this in one file and is the one to copy from.
"""
