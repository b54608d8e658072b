"""How a slice is encoded on its way and decoded where it arrives: stages that are values, and their chain."""
