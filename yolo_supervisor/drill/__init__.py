"""The fire drill: the real daemon on a scratch team with real processes in a real tmux, and injected faults.

``sandbox`` builds the team, ``fake_agent`` is the program that its agents run, ``faults`` are what happens to it, and
``trial`` injects one fault and measures the recovery.
"""
