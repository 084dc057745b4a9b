"""The files of the YOLO plugin (2.9.8 and its bash predecessor) in ``.yolo-planning/``."""

PLANNING = ".yolo-planning"

# -- names in that folder --------------------------------------------------------------------------------------------

CONFIG = "config.json"
LOCKS = ".locks"
AGENT_PIDS = ".agent-pids"
AGENT_PANES = ".agent-panes"
AGENT_HEALTH = ".agent-health"
ACTIVE_AGENT = ".active-agent"
ACTIVE_AGENT_COUNT = ".active-agent-count"
ACTIVE_AGENT_LOCK = ".active-agent-count.lock"
PHASES = "phases"
SNAPSHOTS = ".snapshots"
WATCHDOG_PID = ".watchdog-pid"
