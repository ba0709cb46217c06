"""One HTML page that shows the rollouts of a run."""
