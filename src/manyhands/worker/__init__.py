"""What a script holds: the pool, its data and the model it shares."""
