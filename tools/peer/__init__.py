"""Another VMM beside ours: the same guest, the same update, the same instrument, in the same run.

Reading order: `guest` (the 512 bytes that both boot), `sampler` (the instrument, a program of its
own), `gapsampling` (its client), `argv` (how each VMM is started), `session` (boot once, update
again and again), `compare` (alternately, as a ratio). `python -m tools.peer` runs it.
"""
