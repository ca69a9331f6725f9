"""One example of every message, and what a machine with all kinds of fields looks like."""

from __future__ import annotations

from collections.abc import Mapping

from cpr.messages import (
    Abort,
    Accept,
    Commit,
    Connected,
    Failed,
    FdOffer,
    Fds,
    Hello,
    Listening,
    Loaded,
    MainHeader,
    Message,
    MessageKind,
    Prepared,
    Refuse,
    Rehearsal,
    Running,
    State,
)
from cpr.vmstate import Section, SectionHeader

NONCE = bytes(range(16))
SECTION = Section("cpu0", "x86-cpu", 1, False, b"payload", b"digest")
HELLO = Hello(
    protocol_min=1,
    protocol_max=1,
    product="cpr-vmm",
    product_version="0.1.0",
    machine={
        "type": "cpr-1.0",
        "vcpus": 2,
        "ram": [["ram0", 1 << 40]],
        "pi": 3.0,
        "none": None,
        "irqchip": True,
        "raw": b"\0",
    },
    sections=(SectionHeader("cpu0", "x86-cpu", 2, 1, False),),
    fds=(
        FdOffer("ram:ram0:0", "ram", {"dev": 1, "ino": 2}),
        FdOffer("lease:epoch:0", "control", {}),
    ),
    user_paced=False,
    nonce=NONCE,
)

MESSAGES: Mapping[MessageKind, Message] = {
    message.KIND: message
    for message in (
        HELLO,
        Fds(("ram:ram0:0", "lease:epoch:0"), more=True),
        Rehearsal((SECTION,)),
        State((SECTION, SECTION), "running", 7, 123456789),
        Commit(),
        Abort("a reason", cancelled=True),
        Accept(1, "cpr-vmm", "0.1.0", deferred=False),
        Refuse(("one", "two")),
        Listening(),
        Connected(),
        Prepared(),
        Loaded(),
        Running(987654321, "paused"),
        Failed("another reason"),
        MainHeader(NONCE, "cpr-1.0", (("ram0", 1 << 30), ("ram1", 4096))),
    )
}
