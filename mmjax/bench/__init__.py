"""Fair timing: sides that take turns in one run, the peer in a process of its own, and what the machine itself can do."""
