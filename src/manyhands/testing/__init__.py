"""What our own tests and those of users share: virtual time, faults by seed."""
