"""Other people's algorithms on the environment, each in one file that reads top to bottom."""
