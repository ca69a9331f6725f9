"""The fault matrix: each step of an update x each side x each thing that can go wrong.

`cases.py` says what there is, `party.py` is a guest that cases happen to, `oracle.py` what must be
true afterwards, `matrix.py` runs many at a time.
"""
