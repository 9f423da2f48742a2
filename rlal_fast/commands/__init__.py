"""Commands of `rlal` that have a module of their own, and what the commands share."""
