"""The environment in SkyRL, as a text environment of SkyRL-gym."""
