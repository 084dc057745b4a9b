"""The commits program: ``git commit`` that recovers.

Nothing is imported here: start-up time counts.
"""
