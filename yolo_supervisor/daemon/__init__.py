"""Apply: the daemon, its projects, and the loop that carries the watchers' decisions out."""
