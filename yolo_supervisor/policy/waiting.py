"""Hook values by which Claude Code reports that an agent waits, for a person or for its API.

Two rules use them. The cause of a death (``policy.crash_rules``) needs the narrow sets: only a dialog that was open is
a reason to be killed, and only a limit that all agents share holds their tasks. The silence of a task
(``watchers.tasks``) needs the wide ones: an agent that waits for any of these does not hang.
"""

from __future__ import annotations

OPEN_DIALOG = frozenset({"permission_prompt", "agent_needs_input", "elicitation_dialog"})
"""``notification_type`` of a turn that cannot go on before a person answers."""

IDLE_PROMPT = "idle_prompt"
"""``notification_type`` a minute after the end of a turn; no question is open."""

QUOTA_USED_UP = frozenset({"rate_limit", "billing_error"})
"""``error`` of a StopFailure by a limit that other agents of the account run into, too."""

WAITS_AFTER_FAILURE = QUOTA_USED_UP | {"overloaded", "authentication_failed"}
"""``error`` of every StopFailure after which the client waits: for its quota, the server, or a login by a person."""

WAITS_FOR_QUOTA_STATUS = frozenset({429, 529})
"""HTTP status of an error after which an agent waits for its quota, or for a server with too much work.

The client calls the error ``server_error`` then as well, so the status decides.
"""
