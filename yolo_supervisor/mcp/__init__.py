"""The relay between an MCP client and its server: a process beside the daemon, one for each client and server."""
