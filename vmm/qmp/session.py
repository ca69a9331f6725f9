"""One client's side of a QMP conversation, without I/O: bytes in, calls and replies out.

`receive` adds bytes, `next_message` takes one message, `admit` decides what it is at its turn: a
call to perform, or a reply that is ready (an error, or the negotiation itself). Negotiation is
decided at the turn of a message and not when it is read, because clients send several at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmm.qapi import Array, Enum, Member, Object, QapiError, check
from vmm.qmp.jsonstream import JsonStream
from vmm.qmp.jsonvalue import JsonSyntaxError
from vmm.qmp.schema import Command

GENERIC_ERROR = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"
NEGOTIATE = "qmp_capabilities"
CAPABILITIES_ARGUMENTS = Object(
    "QmpCapabilitiesArguments",
    (Member("enable", Array(Enum("QMPCapability", ("oob",))), optional=True),),
)
_LINE_END = b"\r\n"
_PRETTY_INDENT = 4
_NS_PER_S = 1_000_000_000
_NS_PER_US = 1000


class QmpError(Exception):
    """An error reply; `error_class` is GenericError or CommandNotFound."""

    def __init__(self, desc: str, error_class: str = GENERIC_ERROR) -> None:
        super().__init__(desc)
        self.error_class = error_class


@dataclass(frozen=True, slots=True)
class Message:
    """One input: an object, or what was wrong with it. `oob` messages overtake others."""

    body: dict[str, Any] | None
    mistake: str = ""
    oob: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A command to perform; answer it with `reply` or `error` and its `ident`."""

    command: Command
    arguments: tuple[Any, ...]
    ident: dict[str, Any]


class Session:
    """The state of one connection: not negotiated, then command mode, with oob or without."""

    def __init__(self, commands: Mapping[str, Command], *, pretty: bool = False) -> None:
        self._commands = commands
        self._stream = JsonStream()
        self._pretty = pretty
        self.negotiated = False
        self.oob_enabled = False

    # ---- in -------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Add bytes that the client sent."""
        self._stream.feed(data)

    @property
    def buffered_bytes(self) -> int:
        """Bytes that are not yet a message."""
        return self._stream.buffered_bytes

    def next_message(self) -> Message | None:
        """The next complete message, or None."""
        item = self._stream.take()
        if item is None:
            return None
        if isinstance(item, JsonSyntaxError):
            return Message(None, str(item))
        (value,) = item
        if not isinstance(value, dict):
            return Message(None, "QMP input must be a JSON object")
        return Message(value, oob=self.oob_enabled and "exec-oob" in value)

    def admit(self, message: Message) -> Call | bytes:
        """What to do with a message whose turn it is."""
        if message.body is None:
            return self.error(QmpError(message.mistake), {})
        ident = {"id": message.body["id"]} if "id" in message.body else {}
        try:
            return self._admit(message.body, ident)
        except QapiError as error:
            return self.error(QmpError(str(error)), ident)
        except QmpError as error:
            return self.error(error, ident)

    def _admit(self, body: dict[str, Any], ident: dict[str, Any]) -> Call | bytes:
        name, arguments, oob = self._dissect(body)
        if name == NEGOTIATE and not self.negotiated:
            self._negotiate(arguments)
            return self.reply({}, ident)
        if not self.negotiated:
            raise QmpError(
                f"Expecting capabilities negotiation with '{NEGOTIATE}'", COMMAND_NOT_FOUND
            )
        if name == NEGOTIATE:
            raise QmpError(
                "Capabilities negotiation is already complete, command ignored",
                COMMAND_NOT_FOUND,
            )
        if (found := self._commands.get(name)) is None:
            raise QmpError(f"The command {name} has not been found", COMMAND_NOT_FOUND)
        if oob and not found.allow_oob:
            raise QmpError(f"The command {name} does not support OOB")
        return Call(found, found.bind(arguments), ident)

    def _dissect(self, body: dict[str, Any]) -> tuple[str, dict[str, Any], bool]:
        """Name, arguments and oob of a request; the texts are QEMU's."""
        verb = ""
        for key, value in body.items():
            if key == "execute" or (key == "exec-oob" and self.oob_enabled):
                if not isinstance(value, str):
                    raise QmpError(f"QMP input member '{key}' must be a string")
                if verb:
                    raise QmpError(f"QMP input member '{key}' clashes with '{verb}'")
                verb = key
            elif key == "arguments":
                if not isinstance(value, dict):
                    raise QmpError("QMP input member 'arguments' must be an object")
            elif key != "id":
                raise QmpError(f"QMP input member '{key}' is unexpected")
        if not verb:
            raise QmpError("QMP input lacks member 'execute'")
        return body[verb], body.get("arguments", {}), verb == "exec-oob"

    def _negotiate(self, arguments: dict[str, Any]) -> None:
        clean = check(CAPABILITIES_ARGUMENTS, arguments)
        self.negotiated = True
        self.oob_enabled = "oob" in clean.get("enable", ())

    # ---- out ------------------------------------------------------------------------------------

    def greeting(self, version: Mapping[str, Any]) -> bytes:
        """The first thing a client hears."""
        return self._line({"QMP": {"version": version, "capabilities": ["oob"]}})

    def reply(self, value: Any, ident: Mapping[str, Any]) -> bytes:
        """Success."""
        return self._line({"return": value, **ident})

    def error(self, error: QmpError, ident: Mapping[str, Any]) -> bytes:
        """Failure."""
        return self._line({**ident, "error": {"class": error.error_class, "desc": str(error)}})

    def event(self, name: str, data: Mapping[str, Any] | None, timestamp_ns: int) -> bytes:
        """An event that happened at `timestamp_ns` (CLOCK_REALTIME)."""
        seconds, rest_ns = divmod(timestamp_ns, _NS_PER_S)
        body: dict[str, Any] = {
            "timestamp": {"seconds": seconds, "microseconds": rest_ns // _NS_PER_US},
            "event": name,
        }
        if data is not None:
            body["data"] = dict(data)
        return self._line(body)

    def _line(self, body: Mapping[str, Any]) -> bytes:
        text = json.dumps(body, indent=_PRETTY_INDENT if self._pretty else None)
        return text.encode() + _LINE_END
