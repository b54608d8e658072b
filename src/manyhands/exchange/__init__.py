"""Effects: bytes between processes. Checked headers, raw payloads, one TCP connection per direction."""
