"""The plugin's hard gates."""
