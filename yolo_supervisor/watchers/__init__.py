"""Decide: each watcher looks at its part and returns remediations; it changes nothing."""
