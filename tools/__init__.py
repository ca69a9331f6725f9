"""The lab: pairs, drills, benchmarks and inspection of live updates."""
