"""TRL's GRPOTrainer over the environment."""
