"""The table of rules (docs/redaction.md lists them)."""

from yolo_supervisor.redaction.context import CONTEXT_RULES
from yolo_supervisor.redaction.tokens import TOKEN_RULES

SECRET_RULES = TOKEN_RULES + CONTEXT_RULES
"""All rules, in the order in which they are applied."""
