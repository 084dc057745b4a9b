"""Decide: each watcher observes its subject and returns remediations. It changes nothing."""
