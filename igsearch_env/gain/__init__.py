"""Information gain: counterfactual contexts, the scorer, the evidence pool, shaping, belief."""
