"""The committed state in files: written, verified, listed, read again, and exported."""
