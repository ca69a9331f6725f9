"""What a namespace's launcher and its agent agree on.

Apart from the agent, because that imports all of pyroute2, which takes longer than most of the lab.
"""

from __future__ import annotations

CLONE_NEWUSER, CLONE_NEWNET = 0x1000_0000, 0x4000_0000
REQUEST_MAX_BYTES = 64 << 10
