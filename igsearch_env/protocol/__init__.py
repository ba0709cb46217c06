"""The grammar of turns: tags, tool calls, presets."""
