"""Pure maths over flat arrays: what is shared, how it is combined and how it is applied."""
