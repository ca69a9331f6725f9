"""A Linux guest for the drill, and the rig that runs it where this machine cannot."""
