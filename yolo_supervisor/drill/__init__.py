"""The fire drill: a scratch team with real processes in a real tmux, faults on purpose, and the real daemon to heal it.

``scene`` sets the stage, ``agent`` is the program that plays an agent, ``faults`` are what happens to it.
"""
