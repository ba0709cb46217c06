"""The environment in SkyRL: a text environment of SkyRL-gym, and token credit in its trainer."""
