"""cpr-bench: how long the guest stands still, against what, and by how much more than it must.

Reading order: `plan` (what is measured, and what fits into this machine), `subjects` (a guest that
can be handed over again and again: ours, or the floor's), `rounds` (all subjects in turn, so that
the machine's mood is the same for all), `suite` (the groups of measurements), `results` (rows and
verdicts), `view` (what the terminal shows).
"""
