"""One scripted client: sends what a script says, waits for the answer, and writes it down in comparable words."""

import os
import socket
import time
from dataclasses import dataclass, field

from messages import address, build, colons, dotted, hardware, option, parse
from wire import BROADCAST, CLIENT_PORT, SERVER_PORT, Nic, udp_frame

# A grant waits for its commit, and both servers share a busy machine.
ANSWER_SECS = 2.0
ZERO = "0.0.0.0"
PARAMETERS = bytes([1, 3, 6, 12, 15, 28, 42, 51, 54, 58, 59])
ADDRESS_OPTIONS = {3, 6, 28, 42, 50, 54}
TEXT_OPTIONS = {12, 15, 17, 56, 60, 66, 67, 210}
MARGIN_SECS = 3


@dataclass
class Place:
    interface: str
    address: str
    server: str
    relay: str
    captures: str
    # Of the machines' subnet.
    first: str
    last: str
    # Of the subnet behind the relay.
    relayed_first: str
    relayed_last: str
    lease_secs: int
    names: dict = field(default_factory=dict)

    def is_dynamic(self, text):
        number = int.from_bytes(address(text), "big")
        ends = ((self.first, self.last), (self.relayed_first, self.relayed_last))
        return any(int.from_bytes(address(a), "big") <= number <= int.from_bytes(address(b), "big") for a, b in ends)


class NoOffer(Exception):
    """The script can't go on."""


class Client:
    """`number` makes its MAC; `mac` may be changed by a script before its first message."""

    def __init__(self, place, number):
        self.place = place
        self.nic = Nic(place.interface)
        self.mac = hardware(f"02:4b:45:41:{number >> 8:02x}:{number & 255:02x}")
        self.steps, self.met = [], {}
        self.relay = None
        self.server_mac = None

    # ------------------------------------------------------------ what a script says

    def discover(self, options=(), **header):
        return self.ask("DISCOVER", [(55, PARAMETERS), *options], **header)

    def selecting(self, offer, options=(), **header):
        """REQUEST for what was offered (RFC 2131 table 4, SELECTING)."""
        if offer is None:
            raise NoOffer("no offer to select")
        own = [(54, address(offer.ip(54))), (50, address(offer.yiaddr)), (55, PARAMETERS)]
        return self.ask("REQUEST", [*own, *options], **header)

    def init_reboot(self, requested, options=(), **header):
        return self.ask("REQUEST", [(50, address(requested)), (55, PARAMETERS), *options], **header)

    def renewing(self, own, options=(), **header):
        """From the address, to the server."""
        return self.ask("REQUEST", [(55, PARAMETERS), *options], ciaddr=own, unicast=True, **header)

    def rebinding(self, own, options=(), **header):
        """From the address, to everybody."""
        return self.ask("REQUEST", [(55, PARAMETERS), *options], ciaddr=own, source=own, **header)

    def bind(self, options=(), **header):
        """DISCOVER to ACK, of which only the ACK is written down: its address."""
        offer = self.discover(options, quiet=True, **header)
        answer = self.selecting(offer, options, **header)
        if answer is None:
            raise NoOffer("no ACK to go on from")
        return answer.yiaddr

    def overloaded(self, options, in_file):
        """A DISCOVER with more options in its `file` field."""
        self.ask("DISCOVER", options, file=b"".join(option(*one) for one in in_file) + b"\xff")

    def release(self, own, **header):
        self.ask("RELEASE", [(54, address(self.place.server))], ciaddr=own, unicast=True, **header)

    def decline(self, own, options=None):
        self.ask("DECLINE", [(54, address(self.place.server)), (50, address(own))] if options is None else options)

    def wait(self, secs):
        time.sleep(secs)

    def behind_relay(self, giaddr=None):
        """From now on everything goes through the relay."""
        self.relay = giaddr or self.place.relay

    def another_mac(self):
        self.mac = b"\x06" + self.mac[1:]

    def captured(self, name):
        """A message of real firmware, as a list of its options without type, address and server."""
        with open(os.path.join(self.place.captures, name), "rb") as file:
            message = parse(file.read())
        options = [(code, message.options[code]) for code in message.order if code not in (53, 50, 54)]
        return options, {"flags": message.flags, "secs": message.secs}

    # ------------------------------------------------------------ a message, and its answer

    def ask(self, kind, options=(), *, quiet=False, unicast=False, source=ZERO, xid=None, chaddr=None, wait=ANSWER_SECS,
            **header):
        """Sends and waits. None: nothing came. `quiet`: not written down, unless nothing came."""
        xid = xid or os.urandom(4)
        chaddr = self.mac if chaddr is None else chaddr
        options = list(options)
        if self.relay is not None:
            found = self.by_relay(build(kind, chaddr, xid, options, giaddr=self.relay, **{"hops": 1, **header}), xid, wait)
        else:
            message = build(kind, chaddr, xid, options, **header)
            ciaddr = header.get("ciaddr", ZERO)
            if ciaddr != ZERO:
                self.nic.owned = {address(ciaddr): self.mac}
            target_mac, target = BROADCAST, "255.255.255.255"
            if unicast:
                source, target = ciaddr, self.place.server
                target_mac = self.server_mac = self.server_mac or self.nic.resolve(self.mac, address(ciaddr),
                                                                                   address(target))
            self.nic.send(udp_frame(self.mac, target_mac, address(source), address(target), CLIENT_PORT, SERVER_PORT,
                                    message))
            found = self.await_answer(xid, wait)
        if not quiet or found is None:
            step = f"{len(self.steps) + 1} {kind or 'BOOTP'}"
            self.steps.append({"step": step, "fields": self.words(found, xid, chaddr, header)})
        return found.message if found is not None else None

    def await_answer(self, xid, wait):
        end = time.monotonic() + wait
        while (found := self.nic.next(end)) is not None:
            if found.message.op == 2 and found.message.xid == xid and not found.outgoing:
                return found
        return None

    def by_relay(self, message, xid, wait):
        """As a relay agent sends it: from its own address and port 67."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            udp.bind((self.relay, SERVER_PORT))
            udp.sendto(message, (self.place.server, SERVER_PORT))
        # Its answer may be for another thread's socket: the wire shows it to all.
        return self.await_answer(xid, wait)

    # ------------------------------------------------------------ the words

    def words(self, found, xid, chaddr, header):
        if found is None:
            return {"reply": "silence"}
        message = found.message
        fields = {
            "reply": message.kind,
            "to": f"{self.hardware_name(found.target_mac)} {self.name(found.target)}:{found.target_port}",
            "from": f"{self.name(found.source)}:{found.source_port}",
            "htype, hlen": f"{message.htype}, {message.hlen}",
            "hops": str(message.hops),
            "secs": "as asked" if message.secs == header.get("secs", 0) and message.secs else str(message.secs),
            "flags": f"{message.flags:04x}",
            "ciaddr": self.name(message.ciaddr),
            "yiaddr": self.name(message.yiaddr),
            "siaddr": self.name(message.siaddr),
            "giaddr": self.name(message.giaddr),
            "chaddr": "as asked" if message.chaddr == chaddr.ljust(16, b"\0") else message.chaddr.hex(),
            "sname": text(message.sname),
            "file": text(message.file),
            "300 octets": "yes" if message.length >= 300 else "no",
            "order": ",".join(str(code) for code in message.order),
        }
        for code in message.order:
            fields[f"option {code}"] = self.option(code, message.options[code])
        return fields

    def option(self, code, octets):
        if code in ADDRESS_OPTIONS and len(octets) % 4 == 0:
            return " ".join(self.name(dotted(octets[at:at + 4])) for at in range(0, len(octets), 4))
        if code == 1:
            return dotted(octets)
        if code == 53:
            return str(octets[0])
        if code in (51, 58, 59) and len(octets) == 4:
            return self.time(code, int.from_bytes(octets, "big"))
        if code in TEXT_OPTIONS:
            return text(octets)
        if len(octets) > 32:
            return f"{len(octets)} octets from {octets[:4].hex()}"
        return octets.hex()

    def time(self, code, secs):
        parts = {51: (1.0, "the lease"), 58: (0.5, "half of it"), 59: (0.875, "7/8 of it")}
        part, word = parts[code]
        return word if abs(secs - self.place.lease_secs * part) <= MARGIN_SECS else f"{secs} s"

    def name(self, ip):
        if ip in self.place.names:
            return self.place.names[ip]
        if self.place.is_dynamic(ip):
            return self.met.setdefault(ip, chr(ord("A") + len(self.met)))
        return ip

    def hardware_name(self, mac):
        if mac == colons(BROADCAST):
            return "broadcast"
        return "client" if mac == colons(self.mac) else "host"


def text(octets):
    octets = octets.rstrip(b"\0")
    plain = all(32 <= octet < 127 for octet in octets)
    return octets.decode() if plain else octets.hex()
