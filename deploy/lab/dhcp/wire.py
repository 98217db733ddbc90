"""A NIC for DHCP tools: whole frames out and in, for any MAC, without an address of the kernel's.

It answers ARP for the addresses it is given, as the client would whose message it sends. Python's standard library only.
"""

import socket
import struct
import time
from dataclasses import dataclass

from messages import Message, colons, dotted, parse

BROADCAST = b"\xff" * 6
IPV4, ARP, EVERYTHING = 0x0800, 0x0806, 3
UDP = 17
OUTGOING = 4  # PACKET_OUTGOING, packet(7)
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
RECEIVE_BYTES = 16 << 20
FRAME_BYTES_MAX = 65536
SERVER_PORT, CLIENT_PORT = 67, 68


@dataclass
class Received:
    """A DHCP message with how it came."""
    message: Message
    at: float  # the kernel's time of arrival, Unix
    outgoing: bool
    source_mac: str
    target_mac: str
    source: str
    target: str
    source_port: int
    target_port: int


def checksum(octets):
    if len(octets) % 2:
        octets += b"\0"
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_frame(source_mac, target_mac, source, target, source_port, target_port, payload):
    """`source` and `target` are four octets each. No UDP checksum, as IPv4 allows."""
    datagram = struct.pack("!HHHH", source_port, target_port, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 0, 0, 64, UDP, 0, source, target)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return target_mac + source_mac + struct.pack("!H", IPV4) + head + datagram


def arp_frame(operation, source_mac, source, target_mac, target):
    to = BROADCAST if operation == 1 else target_mac
    body = struct.pack("!HHBBH6s4s6s4s", 1, IPV4, 6, 4, operation, source_mac, source, target_mac, target)
    return (to + source_mac + struct.pack("!H", ARP) + body).ljust(60, b"\0")


class Nic:
    def __init__(self, interface):
        self.raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
        self.raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
        self.raw.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.raw.bind((interface, EVERYTHING))
        # Address to MAC (octets both) that ARP is answered for.
        self.owned = {}

    def send(self, frame):
        self.raw.send(frame)

    def lost(self):
        """Frames that did not fit into the socket's buffer since the last call."""
        found = self.raw.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        return struct.unpack("=II", found)[1]

    def next(self, end):
        """The next DHCP message until `end` (time.monotonic), answering ARP meanwhile. None: no more."""
        while (left := end - time.monotonic()) > 0:
            self.raw.settimeout(left)
            try:
                frame, control, _, sender = self.raw.recvmsg(FRAME_BYTES_MAX, 64)
            except TimeoutError:
                return None
            outgoing = sender[2] == OUTGOING
            kind = frame[12:14]
            if kind == b"\x08\x06" and not outgoing:
                self.answer_arp(frame)
            elif kind == b"\x08\x00" and (found := understand(frame)) is not None:
                found.at, found.outgoing = arrival(control), outgoing
                return found
        return None

    def answer_arp(self, frame):
        if frame[20:22] == b"\0\1" and (mac := self.owned.get(frame[38:42])) is not None:
            self.send(arp_frame(2, mac, frame[38:42], frame[22:28], frame[28:32]))

    def resolve(self, mac, own, target):
        """The MAC of `target`, asked for as `own`."""
        for _ in range(5):
            self.send(arp_frame(1, mac, own, b"\0" * 6, target))
            end = time.monotonic() + 0.5
            while (left := end - time.monotonic()) > 0:
                self.raw.settimeout(left)
                try:
                    frame = self.raw.recv(FRAME_BYTES_MAX)
                except TimeoutError:
                    break
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2" and frame[28:32] == target:
                    return frame[22:28]
        raise OSError(f"nobody answers ARP for {dotted(target)}")


def understand(frame):
    """The DHCP message of an IPv4 frame, or None. Fragments are not put together."""
    if frame[23:24] != b"\x11":
        return None
    packet = frame[14:14 + int.from_bytes(frame[16:18], "big")]
    datagram = packet[(packet[0] & 15) * 4:]
    if len(datagram) < 8:
        return None
    source_port, target_port = struct.unpack("!HH", datagram[:4])
    if target_port not in (SERVER_PORT, CLIENT_PORT) and source_port not in (SERVER_PORT, CLIENT_PORT):
        return None
    message = parse(datagram[8:])
    if message is None:
        return None
    return Received(message, 0.0, False, colons(frame[6:12]), colons(frame[:6]), dotted(packet[12:16]),
                    dotted(packet[16:20]), source_port, target_port)


def arrival(control):
    for level, kind, octets in control:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("=qq", octets[:16])
            return seconds + nanoseconds / 1e9
    return time.time()
