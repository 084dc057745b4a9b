"""Redaction: a table of rules, each the look of one kind of secret (docs/redaction.md)."""

from yolo_supervisor.redaction.text import HIDDEN, cut, cut_fields, redacted, redacted_all, redacted_fields, shortened

__all__ = ["HIDDEN", "cut", "cut_fields", "redacted", "redacted_all", "redacted_fields", "shortened"]
