"""The relay before an MCP server, a process of its own beside the daemon: calls, the server's lives, the breaker."""
