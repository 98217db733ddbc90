"""DHCP messages as octets, both ways (RFC 2131 §2, RFC 2132, RFC 3396).

What the lab's DHCP tools share. No socket and no clock; Python's standard library only.
"""

import socket
import struct
from dataclasses import dataclass, field

COOKIE = b"\x63\x82\x53\x63"
KINDS = ("", "DISCOVER", "OFFER", "REQUEST", "DECLINE", "ACK", "NAK", "RELEASE", "INFORM")
HEADER = struct.Struct("!BBBB4sHH4s4s4s4s16s64s128s")
BROADCAST_FLAG = 0x8000
MESSAGE_BYTES_MIN = 300
PAD, OVERLOAD, END = 0, 52, 255


def address(text):
    return socket.inet_aton(text)


def dotted(octets):
    return socket.inet_ntoa(bytes(octets))


def hardware(mac):
    return bytes.fromhex(mac.replace(":", ""))


def colons(octets):
    return ":".join(f"{octet:02x}" for octet in octets)


def option(code, value):
    """One option; a long value is split (RFC 3396 §5)."""
    pieces = [value[at:at + 255] for at in range(0, len(value), 255)] or [b""]
    return b"".join(bytes([code, len(piece)]) + piece for piece in pieces)


def build(kind, chaddr, xid, options=(), *, op=1, htype=1, hlen=6, hops=0, secs=0, flags=0, ciaddr="0.0.0.0",
          giaddr="0.0.0.0", file=b"", pad=MESSAGE_BYTES_MIN):
    """A message. `kind` is a name of KINDS, or None for BOOTP; `options` are (code, octets), in this order."""
    head = HEADER.pack(op, htype, hlen, hops, xid, secs, flags, address(ciaddr), b"\0" * 4, b"\0" * 4,
                       address(giaddr), chaddr.ljust(16, b"\0"), b"", file)
    body = b"" if kind is None else option(53, bytes([KINDS.index(kind)]))
    body += b"".join(option(code, value) for code, value in options)
    return (head + COOKIE + body + b"\xff").ljust(pad, b"\0")


@dataclass
class Message:
    op: int
    htype: int
    hlen: int
    hops: int
    xid: bytes
    secs: int
    flags: int
    ciaddr: str
    yiaddr: str
    siaddr: str
    giaddr: str
    chaddr: bytes
    sname: bytes
    file: bytes
    length: int
    # Codes as they come, pieces of one option once.
    order: list = field(default_factory=list)
    options: dict = field(default_factory=dict)

    @property
    def kind(self):
        """OFFER and such; BOOTP where there is no option 53."""
        number = self.options.get(53, b"")
        if not number:
            return "BOOTP"
        return KINDS[number[0]] if number[0] < len(KINDS) else str(number[0])

    @property
    def mac(self):
        return colons(self.chaddr[:6])

    def ip(self, code):
        """The first address in an option, or ""."""
        octets = self.options.get(code, b"")
        return dotted(octets[:4]) if len(octets) >= 4 else ""

    def number(self, code):
        octets = self.options.get(code)
        return None if octets is None else int.from_bytes(octets, "big")


def parse(octets):
    """The message, or None where it is none."""
    if len(octets) < HEADER.size + 4 or octets[HEADER.size:HEADER.size + 4] != COOKIE:
        return None
    fields = list(HEADER.unpack(octets[:HEADER.size]))
    fields[7:11] = [dotted(ip) for ip in fields[7:11]]
    message = Message(*fields, length=len(octets))
    _read(octets[HEADER.size + 4:], message)
    overload = message.options.get(OVERLOAD, b"\0")[-1:]
    if overload in (b"\1", b"\3"):
        _read(message.file, message)
        message.file = b""
    if overload in (b"\2", b"\3"):
        _read(message.sname, message)
        message.sname = b""
    return message


def _read(octets, message):
    at = 0
    while at + 1 < len(octets) and octets[at] != END:
        if octets[at] == PAD:
            at += 1
            continue
        code, length = octets[at], octets[at + 1]
        if code not in message.options:
            message.order.append(code)
        message.options[code] = message.options.get(code, b"") + octets[at + 2:at + 2 + length]
        at += 2 + length
