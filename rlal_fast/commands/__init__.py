"""Command groups of `rlal` beside those of `__main__`: one file each."""
