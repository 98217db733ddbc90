"""The network clients of a machine's firmware and loaders: DHCP, TFTP, and a TCP that knows no RST.

Raw frames where firmware has no socket API. Python's standard library only.
"""

import hashlib
import os
import socket
import struct
import time

BROADCAST = b"\xff" * 6
# As PXE 2.1 §2.2.2 doubles them, but from 1 s.
DHCP_WAITS_SECS = (1, 2, 4, 8, 8, 8, 8, 8)
TFTP_TIMEOUT_SECS, TFTP_TRIES = 1.0, 10
# What OVMF asks for.
PARAMETERS = bytes([1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97])
OUTGOING = 4  # PACKET_OUTGOING, packet(7)
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33  # socket(7)


class Failure(Exception):
    """What a machine would show on its console before it gives up."""


def checksum(octets):
    if len(octets) % 2:
        octets += b"\0"
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(protocol, source, target, payload):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, source, target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def raw_socket(interface, protocol):
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    # A whole window and what else is on the wire, beyond the host's limit.
    raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
    raw.bind((interface, protocol))
    return raw


# ---------------------------------------------------------------- DHCP (RFC 2131, 2132, 4578)


def dhcp(interface, mac, vendor_class="", arch=None, uuid="", client_id=b"", on_retry=lambda n: None):
    """DISCOVER to ACK. Raises Failure when nobody answers."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    xid = os.urandom(4)
    own = b""
    if client_id:
        own += option(61, client_id)
    if uuid:
        own += option(97, b"\0" + bytes.fromhex(uuid.replace("-", "")))
    if arch is not None:
        own += option(94, b"\x01\x03\x01") + option(93, struct.pack("!H", arch))
    if vendor_class:
        own += option(60, vendor_class.encode())
    flags = 0 if client_id else 0x8000
    with raw_socket(interface, 0x0800) as raw:
        asked = 0
        for wait in DHCP_WAITS_SECS:
            if asked:
                on_retry(asked)
            asked += 1
            body = option(53, b"\x01") + option(57, b"\x05\xc0") + option(55, PARAMETERS) + own
            send_dhcp(raw, interface, hardware, xid, flags, body)
            offer = await_dhcp(raw, hardware, xid, (2,), wait)
            if offer is None:
                continue
            server = offer["options"].get(54, b"\0\0\0\0")
            for wait in (2, 4, 8):
                body = option(53, b"\x03") + option(54, server) + option(50, offer["yiaddr"])
                body += option(57, b"\xff\x00") + option(55, PARAMETERS) + own
                send_dhcp(raw, interface, hardware, xid, flags, body)
                answer = await_dhcp(raw, hardware, xid, (5, 6), wait)
                if answer is not None:
                    break
                on_retry(asked)
            if answer is None or answer["kind"] == 6:
                continue
            return lease_of(answer)
    raise Failure(f"no DHCP answer after {asked} tries")


def option(code, value):
    return bytes([code, len(value)]) + value


def send_dhcp(raw, interface, hardware, xid, flags, options):
    message = struct.pack("!BBBB4sHH16s", 1, 1, 6, 0, xid, 0, flags, b"\0" * 16)
    message += hardware + b"\0" * 10 + b"\0" * 192 + b"\x63\x82\x53\x63" + options + b"\xff"
    message = message.ljust(300, b"\0")
    datagram = struct.pack("!HHHH", 68, 67, 8 + len(message), 0) + message
    packet = ipv4(17, b"\0" * 4, b"\xff" * 4, datagram)
    raw.send(BROADCAST + hardware + b"\x08\x00" + packet)


def await_dhcp(raw, hardware, xid, kinds, wait):
    end = time.monotonic() + wait
    while (left := end - time.monotonic()) > 0:
        raw.settimeout(left)
        try:
            frame, (_, _, kind, _, _) = raw.recvfrom(65536)
        except TimeoutError:
            return None
        if kind == OUTGOING or frame[23:24] != b"\x11":
            continue
        datagram = frame[14 + (frame[14] & 15) * 4:]
        message = datagram[8:]
        if datagram[2:4] != b"\x00\x44" or len(message) < 240 or message[0] != 2:
            continue
        if message[4:8] != xid or message[28:34] != hardware or message[236:240] != b"\x63\x82\x53\x63":
            continue
        options = parse_options(message[240:])
        answer = {"kind": (options.get(53) or b"\0")[0], "yiaddr": message[16:20], "siaddr": message[20:24],
                  "file": message[108:236], "options": options}
        if answer["kind"] in kinds:
            return answer
    return None


def parse_options(octets):
    found, at = {}, 0
    while at < len(octets) and octets[at] != 255:
        if octets[at] == 0:
            at += 1
            continue
        code, length = octets[at], octets[at + 1]
        found[code] = found.get(code, b"") + octets[at + 2:at + 2 + length]
        at += 2 + length
    return found


def lease_of(answer):
    options = answer["options"]
    text = lambda octets: octets.split(b"\0", 1)[0].decode()  # noqa: E731
    address = lambda octets: socket.inet_ntoa(octets[:4]) if octets and octets[:4] != b"\0\0\0\0" else ""  # noqa: E731
    return {
        "address": socket.inet_ntoa(answer["yiaddr"]),
        "prefix": bin(int.from_bytes(options.get(1, b"\xff\xff\xff\0"), "big")).count("1"),
        "router": address(options.get(3, b"")),
        "server": address(options.get(54, b"")),
        "next_server": address(answer["siaddr"]) or text(options.get(66, b"")),
        "file": text(options.get(67, b"")) or text(answer["file"]),
        "lease_secs": int.from_bytes(options.get(51, b"\0"), "big"),
    }


# ---------------------------------------------------------------- TFTP (RFC 1350, 2347 to 2349, 7440)


def tftp(server, name, blksize, windowsize=1, probe=False, optional=False):
    """The file's octets. With `probe` only its size, and the transfer is aborted with error 8, as OVMF does.

    With `optional` None when the server says that there is no such file.
    """
    options = {"tsize": 0, "blksize": blksize}
    if windowsize > 1:
        options["windowsize"] = windowsize
    request = b"\0\x01" + name.encode() + b"\0octet\0"
    request += b"".join(f"{key}\0{value}\0".encode() for key, value in options.items())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        udp.settimeout(TFTP_TIMEOUT_SECS)
        found, block, peer, last, silent = bytearray(), 0, None, request, 0
        blocks, size, block_bytes, window = 0, None, 512, 1
        udp.sendto(request, (server, 69))
        while True:
            try:
                packet, sender = udp.recvfrom(65536)
            except TimeoutError:
                silent += 1
                if silent >= TFTP_TRIES:
                    raise Failure(f"TFTP {name}: no answer") from None
                udp.sendto(last, peer or (server, 69))
                continue
            if sender[0] != server or (peer and sender != peer) or len(packet) < 4:
                continue
            peer, silent = sender, 0
            code, number = struct.unpack("!HH", packet[:4])
            if code == 5:
                if optional and number == 1:
                    return None
                raise Failure(f"TFTP {name}: error {number}: {packet[4:-1].decode('utf-8', 'replace')}")
            if code == 6 and block == 0:
                words = packet[2:].split(b"\0")
                given = {key.decode().lower(): int(value) for key, value in zip(words[::2], words[1::2])}
                size, window = given.get("tsize"), given.get("windowsize", 1)
                block_bytes = given.get("blksize", 512)
                if probe:
                    udp.sendto(b"\0\x05\0\x08User aborted the transfer\0", peer)
                    return size
                last = struct.pack("!HH", 4, 0)
                udp.sendto(last, peer)
                continue
            if code != 3:
                continue
            if number != (block + 1) & 0xFFFF:
                # RFC 7440 §4: acknowledge what came in order; the server goes back to it.
                blocks = 0
                last = struct.pack("!HH", 4, block & 0xFFFF)
                udp.sendto(last, peer)
                continue
            block += 1
            blocks += 1
            found += packet[4:]
            end = len(packet) - 4 < block_bytes
            if end or blocks >= window:
                blocks = 0
                last = struct.pack("!HH", 4, block & 0xFFFF)
                udp.sendto(last, peer)
            if end:
                if size is not None and size != len(found):
                    raise Failure(f"TFTP {name}: {len(found)} octets instead of {size}")
                return bytes(found)


# ---------------------------------------------------------------- TCP of a loader (RFC 9293, the half of it)

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
# lwIP's, roughly.
SYN_WAITS_SECS = (1, 2, 4, 8, 8, 8, 8)


def http_by_own_tcp(interface, mac, address, server, port, path, source_port, stall=lambda got: None):
    """GET by a TCP of our own from a fixed port; (octets, SHA-256 in hex).

    Like some loaders' it never sends RST: an old connection of the same ports at the server is the server's to end.
    (The namespace's rules keep the kernel's TCP from these ports; it still answers ARP.)
    `stall` is called in the middle; if it does not return, the server sees a machine that lost its power.
    """
    ours, theirs = socket.inet_aton(address), socket.inet_aton(server)
    hardware = bytes.fromhex(mac.replace(":", ""))
    with raw_socket(interface, ETH_P_ALL) as raw:
        wire = OwnTcp(raw, hardware, ours, theirs, source_port, port)
        wire.connect()
        host = f"{server}:{port}"
        wire.send(f"GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: Syslinux\r\n\r\n".encode())
        return wire.receive_answer(path, stall)


class OwnTcp:
    WINDOW = 60000

    def __init__(self, raw, hardware, ours, theirs, source_port, port):
        self.raw, self.hardware, self.ours, self.theirs = raw, hardware, ours, theirs
        self.source_port, self.port = source_port, port
        # RFC 9293 §3.4.1: the clock of 4 us.
        self.next = int(time.time() * 250000) & 0xFFFFFFFF
        self.expected = 0
        self.gateway = self.resolve()

    def resolve(self):
        query = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, self.hardware, self.ours, b"\0" * 6, self.theirs)
        for _ in range(10):
            self.raw.send(BROADCAST + self.hardware + b"\x08\x06" + query)
            end = time.monotonic() + 1
            while (frame := self.frame(end)) is not None:
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x02" and frame[28:32] == self.theirs:
                    return frame[22:28]
        raise Failure("the rack answers no ARP")

    def frame(self, end):
        """The next frame that arrives."""
        while (left := end - time.monotonic()) > 0:
            self.raw.settimeout(left)
            try:
                frame, (_, _, kind, _, _) = self.raw.recvfrom(1 << 17)
            except TimeoutError:
                return None
            if kind != OUTGOING:
                return frame
        return None

    def segment(self, end):
        """(sequence, acknowledgement, flags, payload) of the next segment of this connection."""
        while (frame := self.frame(end)) is not None:
            if frame[12:14] != b"\x08\x00" or frame[23] != 6 or frame[26:34] != self.theirs + self.ours:
                continue
            packet = frame[14:14 + int.from_bytes(frame[16:18], "big")]
            tcp = packet[(packet[0] & 15) * 4:]
            source, target, sequence, acknowledged, offset, flags = struct.unpack("!HHIIBB", tcp[:14])
            if (source, target) == (self.port, self.source_port):
                return sequence, acknowledged, flags, tcp[(offset >> 4) * 4:]
        return None

    def emit(self, flags, payload=b"", sequence=None):
        sequence = self.next if sequence is None else sequence
        options = b"\x02\x04\x05\xb4" if flags & SYN else b""
        head = struct.pack("!HHIIBBHHH", self.source_port, self.port, sequence, self.expected if flags & ACK else 0,
                           (5 + len(options) // 4) << 4, flags, self.WINDOW, 0, 0) + options
        pseudo = self.ours + self.theirs + struct.pack("!BBH", 0, 6, len(head) + len(payload))
        total = checksum(pseudo + head + payload)
        head = head[:16] + struct.pack("!H", total) + head[18:]
        packet = ipv4(6, self.ours, self.theirs, head + payload)
        self.raw.send(self.gateway + self.hardware + b"\x08\x00" + packet)

    def connect(self):
        start = self.next
        self.next = (start + 1) & 0xFFFFFFFF
        for wait in SYN_WAITS_SECS:
            self.emit(SYN, sequence=start)
            end = time.monotonic() + wait
            while (segment := self.segment(end)) is not None:
                sequence, acknowledged, flags, _ = segment
                if flags & RST and acknowledged == self.next:
                    raise Failure("connection refused")
                if flags & SYN and flags & ACK and acknowledged == self.next:
                    self.expected = (sequence + 1) & 0xFFFFFFFF
                    self.emit(ACK)
                    return
                # Of another connection of these ports: no RST, no answer.
        raise Failure("no connection: the server answers no SYN")

    def send(self, octets):
        """One segment, until it is acknowledged. Data that comes first is left to its resend."""
        target = (self.next + len(octets)) & 0xFFFFFFFF
        for wait in SYN_WAITS_SECS:
            self.emit(ACK | PSH, octets)
            end = time.monotonic() + wait
            while (segment := self.segment(end)) is not None:
                if segment[2] & RST:
                    raise Failure("connection reset")
                if segment[1] == target:
                    self.next = target
                    self.early = segment
                    return
        raise Failure("the request is not acknowledged")

    def receive_answer(self, path, stall):
        head, size, got, digest, asked_to_stall = b"", None, 0, hashlib.sha256(), False
        segment, silent, ahead = self.early, 0, {}
        while True:
            if segment is None:
                silent += 1
                if silent > 30:
                    raise Failure(f"{path}: the server went silent after {got} octets")
                self.emit(ACK)
                segment = self.segment(time.monotonic() + 1)
                continue
            silent = 0
            sequence, _, flags, payload = segment
            if flags & RST:
                raise Failure(f"{path}: connection reset after {got} octets")
            if payload or flags & FIN:
                ahead[sequence] = (payload, flags & FIN)
            found, ended = self.in_order(ahead)
            if payload or flags & FIN:
                self.emit(ACK)
            if size is None:
                head += found
                if b"\r\n\r\n" in head:
                    head, _, found = head.partition(b"\r\n\r\n")
                    lines = head.decode("latin-1").split("\r\n")
                    if lines[0].split()[1:2] != ["200"]:
                        raise Failure(f"{path}: {lines[0]}")
                    lengths = [line.split(":")[1] for line in lines if line.lower().startswith("content-length:")]
                    size = int(lengths[0])
            if size is not None:
                got += len(found)
                digest.update(found)
                if not asked_to_stall and got > size // 2:
                    asked_to_stall = True
                    stall(got)
            if ended or (size is not None and got >= size):
                self.emit(FIN | ACK)
                self.next = (self.next + 1) & 0xFFFFFFFF
                return got, digest.hexdigest()
            segment = self.segment(time.monotonic() + 1)

    def in_order(self, ahead):
        """Takes from the segments that came what comes next; (octets, whether it was the last)."""
        found = b""
        while True:
            for sequence, (payload, fin) in list(ahead.items()):
                # A resend may begin before what is still missing.
                known = (self.expected - sequence) & 0xFFFFFFFF
                if known > self.WINDOW * 2:
                    continue
                del ahead[sequence]
                if known > len(payload) or (known == len(payload) and not fin):
                    continue
                found += payload[known:]
                self.expected = (self.expected + len(payload) - known + bool(fin)) & 0xFFFFFFFF
                if fin:
                    return found, True
                break
            else:
                return found, False
