"""`make demo`: the flights under kills in three modes, and what each mode made of them.

`data` says what should come out (from the archive, without semel), `schedule` what goes wrong and when, `run` lets it
happen to real processes, `reckon` compares, `screen` shows.
"""
