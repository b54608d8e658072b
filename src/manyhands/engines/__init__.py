"""Engines start, watch and stop the processes of a pool; `local` is the only one that starts them itself."""
