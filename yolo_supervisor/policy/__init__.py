"""Rules: pure decisions about retries, crashes, failure rates and file integrity."""
