"""Observe: agents, tasks, leases, locks and snapshots in their present state. Nothing here changes anything."""
