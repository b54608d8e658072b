"""How each framework's models are read, written and hooked; found by `worker.driving.driver_for`."""
