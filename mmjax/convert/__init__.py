"""Published checkpoints in and out: readers that execute nothing, rules that run both ways, one file a family."""
