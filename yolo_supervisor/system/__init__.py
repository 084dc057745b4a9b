"""Processes, tmux, git: everything asked of the operating system and of other programs."""
