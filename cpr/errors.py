"""The error tree of the protocol package.

CprError
├── LocalProtocolError    we did something that the handshake does not allow here: our bug
├── RemoteProtocolError   the peer did: bad frame, bad message, message in the wrong phase
│   └── LimitError        the peer exceeded a named limit
├── StateError            a vmstate section cannot be used
│   ├── UnknownSectionError    mandatory section that this build does not know
│   ├── SectionVersionError    too new, or older than the oldest readable version
│   ├── MissingFieldError      a field is absent and has no default for that version
│   ├── FieldTypeError         a field is there with another type, or is not expected at all
│   └── SectionDigestError     the payload is not what was sent
├── FdError               a named fd is missing, unexpected, or not the file that was promised
└── ChannelError          the channel broke, or the operating system refused
"""

from __future__ import annotations


class CprError(Exception):
    """Root of every error that this package raises on purpose."""


class LocalProtocolError(CprError):
    """Our side asked for something the present phase does not allow."""


class RemoteProtocolError(CprError):
    """The peer broke the protocol."""


class LimitError(RemoteProtocolError):
    """The peer sent more than a named limit allows."""


class StateError(CprError):
    """A section cannot be saved, recognised or loaded; the message names it."""


class UnknownSectionError(StateError):
    """A mandatory section has no reader here."""


class SectionVersionError(StateError):
    """The section's version is outside what this build reads."""


class MissingFieldError(StateError):
    """A field that the sender's version must have is absent."""


class FieldTypeError(StateError):
    """A field has another type than declared, or is unknown in this version."""


class SectionDigestError(StateError):
    """A section's payload does not match its digest."""


class FdError(CprError):
    """A named fd is missing, was not expected, or is another file than promised."""


class ChannelError(CprError):
    """The channel to the peer cannot be used any more."""
