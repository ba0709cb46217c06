"""The environment in verl: an agent loop, token credit in its trainers, and search as a tool."""
