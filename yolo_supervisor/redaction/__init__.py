"""Redaction: a table of rules, each the look of one kind of secret (docs/redaction.md lists them)."""

from yolo_supervisor.redaction.rule import HIDDEN, SecretRule
from yolo_supervisor.redaction.text import (
    SECRET_RULES,
    cut,
    cut_fields,
    redacted,
    redacted_all,
    redacted_fields,
    shortened,
)

__all__ = [
    "HIDDEN",
    "SECRET_RULES",
    "SecretRule",
    "cut",
    "cut_fields",
    "redacted",
    "redacted_all",
    "redacted_fields",
    "shortened",
]
