"""Past runs: what each leaves for later ones to learn from (method.md §10).

past_run.py says what is kept of a run, content.py how that becomes bytes, store.py keeps them in
the file that database.py opens. `store` and `database` do without torch and numpy until a run's
content is asked for.
"""
