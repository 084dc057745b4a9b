"""Look: agents, tasks, leases, locks and snapshots as they are now. Nothing here changes anything."""
