"""What two processes say in an update: events in order, and the raw lines of one QMP session."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Self

from tests.framework.guest_rig import Rig, Successor
from tools.lab.deadlines import QMP_REPLY_MS, UPDATE_MS, within
from tools.lab.process import VmmProcess

FINAL = ("completed", "failed", "cancelled")

Story = list[str]


def brief(event: dict[str, Any]) -> str:
    """`STOP`, `MIGRATION active`, `MIGRATION_PASS 1`, …"""
    data = event.get("data", {})
    detail = data.get("status", data.get("pass", ""))
    return f"{event['event']} {detail}".strip()


async def story(process: VmmProcess, *ends: str) -> Story:
    """Every event that comes, in order, up to the first that is one of `ends`.

    Without `ends`: up to the final status of a migration.
    """
    last = ends or tuple(f"MIGRATION {status}" for status in FINAL)
    heard: Story = []

    async def listen() -> None:
        while not heard or heard[-1] not in last:
            heard.append(brief(dict(await process.next_event())))

    try:
        await within(UPDATE_MS, f"{process.name}: one of {last}", listen())
    except Exception as error:
        raise AssertionError(f"{process.name} said {heard}, then: {error}") from error
    return heard


async def both_stories(rig: Rig, new: Successor) -> tuple[Story, Story]:
    """The events of the whole update, old side and new side; the rig is with the new one then."""
    rig.vmm.forget_events()
    await rig.migrate(new)
    old = await story(rig.vmm)
    return old, await story(new.process)


class Wire:
    """A QMP session as lines: what comes over the wire, replies among events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, path: Path) -> Self:
        """Connect and negotiate."""
        wire = cls(*await asyncio.open_unix_connection(str(path)))
        greeting = await wire.line()
        assert greeting["QMP"]["version"]["qemu"]["major"] == 10
        assert greeting["QMP"]["capabilities"] == ["oob"]
        wire.send("qmp_capabilities")
        assert await wire.line() == {"return": {}}
        return wire

    def send(self, command: str, arguments: object = None) -> None:
        """Send one command."""
        message: dict[str, object] = {"execute": command}
        if arguments is not None:
            message["arguments"] = arguments
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def line(self) -> dict[str, Any]:
        """Return the next message, without its timestamp."""
        text = await within(QMP_REPLY_MS, "a QMP line", self._reader.readline())
        message: dict[str, Any] = json.loads(text)
        message.pop("timestamp", None)
        return message

    async def ended(self) -> bool:
        """Wait for the end of the session; whether nothing came before it."""
        return await within(QMP_REPLY_MS, "the end of QMP", self._reader.read()) == b""

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        await self._writer.wait_closed()
