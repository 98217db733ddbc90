"""The table of scripted exchanges: what a client sends, in which order. What comes back is for `exchange` to write down.

A script is a function of a Client; its name, with blanks, is the script's name in docs/spec/kea-differences.md. Each
has a MAC of its own, so that they can run at the same time. The server's configuration is the test's business:
reservations are for RESERVED (by MAC), RESERVED_ID (by client id) and RESERVED_CIRCUIT (by the relay's port).
"""

from client import PARAMETERS
from messages import BROADCAST_FLAG, address, hardware, option

# (MAC, address)
RESERVED = ("02:4b:45:41:ff:01", "10.99.1.1")
# Inside the dynamic range.
RESERVED_INSIDE = ("02:4b:45:41:ff:02", "10.99.20.20")
RESERVED_ID = (b"\0reserved!", "10.99.1.3")
# Sub-option 1 of option 82, behind the relay.
RESERVED_CIRCUIT = (b"port-2", "10.96.0.20")
# What the operator set: twenty options of 40 octets, and one of 400.
OPERATOR_OPTIONS, LONG_OPTION = bytes(range(224, 244)), 244
STRANGE_SUBNET = "192.0.2.77"
NEVER_GIVEN = "10.99.200.200"
CIRCUIT, REMOTE = b"port-7", b"switch-3"
EVERYTHING = bytes(code for code in range(1, 224) if code not in (52, 53, 55, 57))

SCRIPTS = {}


def script(function):
    SCRIPTS[function.__name__.replace("_", " ")] = function
    return function


def relay_info(*sub_options):
    return 82, b"".join(option(code, octets) for code, octets in sub_options)


# ---------------------------------------------------------------- getting an address (RFC 2131 §3.1)


@script
def discover_and_select(c):
    c.selecting(c.discover())


@script
def discover_and_select_with_the_broadcast_flag(c):
    c.selecting(c.discover(flags=BROADCAST_FLAG), flags=BROADCAST_FLAG)


@script
def discover_twice_is_offered_the_same(c):
    c.discover()
    c.discover()


@script
def discover_of_a_bound_client(c):
    own = c.bind()
    c.discover([(50, address(own))])


@script
def discover_asking_for_a_free_address(c):
    c.selecting(c.discover([(50, address("10.99.33.33"))]))


@script
def discover_asking_for_an_address_of_another_network(c):
    c.discover([(50, address(STRANGE_SUBNET))])


@script
def discover_asking_for_a_long_and_a_short_lease(c):
    c.discover([(51, (86400).to_bytes(4, "big"))])
    c.discover([(51, (60).to_bytes(4, "big"))])


@script
def discover_with_secs_and_a_host_name(c):
    c.selecting(c.discover([(12, b"node-17")], secs=9), [(12, b"node-17")], secs=9)


@script
def discover_without_a_parameter_list(c):
    c.ask("DISCOVER")


@script
def request_twice_is_acknowledged_twice(c):
    offer = c.discover(quiet=True)
    c.selecting(offer)
    c.selecting(offer)


@script
def request_for_another_address_than_the_offer(c):
    offer = c.discover(quiet=True)
    c.ask("REQUEST", [(54, address(offer.ip(54))), (50, address(NEVER_GIVEN)), (55, PARAMETERS)])


@script
def request_to_another_server(c):
    offer = c.discover(quiet=True)
    c.ask("REQUEST", [(54, address("10.99.0.77")), (50, address(offer.yiaddr)), (55, PARAMETERS)])


@script
def request_that_names_the_server_but_no_address(c):
    c.discover(quiet=True)
    c.ask("REQUEST", [(54, address(c.place.server)), (55, PARAMETERS)])


# ---------------------------------------------------------------- coming back (RFC 2131 §3.2, §4.3.2)


@script
def init_reboot_to_its_own_address(c):
    c.init_reboot(c.bind())


@script
def init_reboot_to_another_network(c):
    c.bind()
    c.init_reboot(STRANGE_SUBNET)


@script
def init_reboot_to_another_address_than_its_own(c):
    c.bind()
    c.init_reboot(NEVER_GIVEN)


@script
def init_reboot_of_an_unknown_client(c):
    c.init_reboot(NEVER_GIVEN)


@script
def init_reboot_of_an_unknown_client_to_another_network(c):
    c.init_reboot(STRANGE_SUBNET)


@script
def renewing(c):
    c.renewing(c.bind())


@script
def renewing_an_address_it_never_had(c):
    c.bind()
    c.renewing(NEVER_GIVEN)


@script
def rebinding(c):
    c.rebinding(c.bind())


@script
def rebinding_of_an_unknown_client(c):
    c.rebinding(NEVER_GIVEN)


@script
def rebinding_an_address_of_another_network(c):
    c.rebinding(STRANGE_SUBNET)


# ---------------------------------------------------------------- giving up, declining, asking only (§4.3.3 to §4.3.5)


@script
def release_then_discover(c):
    own = c.bind()
    c.release(own)
    c.discover()


@script
def release_then_init_reboot(c):
    own = c.bind()
    c.release(own)
    c.init_reboot(own)


@script
def decline_then_discover(c):
    own = c.bind()
    c.decline(own)
    c.discover()


@script
def decline_of_an_address_it_does_not_have(c):
    own = c.bind()
    c.decline(NEVER_GIVEN)
    c.init_reboot(own)


@script
def inform(c):
    c.ask("INFORM", [(55, PARAMETERS)], ciaddr="10.99.2.2", unicast=True)


@script
def inform_by_broadcast(c):
    c.ask("INFORM", [(55, PARAMETERS)], ciaddr="10.99.2.3", source="10.99.2.3")


@script
def inform_without_an_address(c):
    c.ask("INFORM", [(55, PARAMETERS)])


# ---------------------------------------------------------------- who asks (§4.2, RFC 6842, RFC 4361)


@script
def client_id_is_echoed(c):
    own = [(61, b"\1" + c.mac)]
    c.selecting(c.discover(own), own)


@script
def two_client_ids_of_one_mac(c):
    own = c.bind([(61, b"\1" + c.mac)])
    c.discover([(61, b"\xff\0\0\0\1\0\1\0\1" + c.mac)])
    c.init_reboot(own)


@script
def one_client_id_of_two_macs(c):
    own = [(61, b"\0rack-4-slot-2")]
    c.bind(own)
    c.another_mac()
    c.discover(own)


@script
def long_client_id(c):
    # What Kea 2.2 takes at most.
    own = [(61, bytes(range(128)))]
    c.discover(own)


@script
def longest_client_id_there_is(c):
    c.discover([(57, (1472).to_bytes(2, "big")), (61, bytes(range(255)))])


@script
def empty_client_id(c):
    c.discover([(61, b"")])


@script
def reserved_address(c):
    c.mac = hardware(RESERVED[0])
    c.selecting(c.discover())


@script
def reserved_address_inside_the_range(c):
    c.mac = hardware(RESERVED_INSIDE[0])
    c.selecting(c.discover())


@script
def reserved_by_client_id(c):
    own = [(61, RESERVED_ID[0])]
    c.selecting(c.discover(own), own)


@script
def reserved_by_the_relays_port(c):
    c.behind_relay()
    info = [relay_info((1, RESERVED_CIRCUIT[0]), (2, REMOTE))]
    c.selecting(c.discover(info), info)


@script
def asking_for_an_address_reserved_for_another(c):
    c.discover([(50, address(RESERVED_INSIDE[1]))])
    c.init_reboot(RESERVED_INSIDE[1])


# ---------------------------------------------------------------- options (RFC 2132, RFC 3396)


@script
def parameter_list_in_another_order(c):
    c.ask("DISCOVER", [(55, bytes([42, 15, 6, 3, 1, 51]))])


@script
def parameter_list_with_everything(c):
    c.ask("DISCOVER", [(55, EVERYTHING)])


@script
def everything_in_the_smallest_message(c):
    c.ask("DISCOVER", [(57, (576).to_bytes(2, "big")), (55, EVERYTHING)])


@script
def parameter_list_with_nothing_we_have(c):
    c.ask("DISCOVER", [(55, bytes([252, 253, 119]))])


@script
def a_long_option(c):
    c.ask("DISCOVER", [(55, bytes([LONG_OPTION])), (57, (1472).to_bytes(2, "big"))])


@script
def more_options_than_a_small_message_holds(c):
    c.ask("DISCOVER", [(55, bytes([1, 3, 6, 15]) + OPERATOR_OPTIONS), (57, (576).to_bytes(2, "big"))])


@script
def many_options_in_a_large_message(c):
    c.ask("DISCOVER", [(55, bytes([1, 3, 6, 15]) + OPERATOR_OPTIONS), (57, (1472).to_bytes(2, "big"))])


@script
def many_options_and_no_maximum_size(c):
    c.ask("DISCOVER", [(55, bytes([1, 3, 6, 15]) + OPERATOR_OPTIONS)])


@script
def options_in_the_file_field(c):
    # Overload (52): the parameter list is in `file`.
    message = [(52, b"\1"), (57, (1400).to_bytes(2, "big"))]
    c.overloaded(message, [(55, bytes([1, 3, 6]))])


@script
def rapid_commit(c):
    # Only an address that was probed may be given in two messages.
    c.discover(quiet=True)
    c.wait(2)
    c.discover([(80, b"")])


# ---------------------------------------------------------------- relays (RFC 1542, 3046, 3527, 5107)


@script
def relayed(c):
    c.behind_relay()
    c.selecting(c.discover())


@script
def relayed_with_the_broadcast_flag(c):
    c.behind_relay()
    c.discover(flags=BROADCAST_FLAG)


@script
def relayed_with_option_82(c):
    c.behind_relay()
    info = [relay_info((1, CIRCUIT), (2, REMOTE))]
    c.selecting(c.discover(info), info)


@script
def relayed_to_an_unknown_network(c):
    c.behind_relay()
    c.ask("DISCOVER", [(55, PARAMETERS), relay_info((1, CIRCUIT), (5, address("198.51.100.1")))])


@script
def link_selection(c):
    # The relay stands on the machines' VLAN and asks for the other subnet.
    c.behind_relay(c.place.address)
    c.discover([relay_info((1, CIRCUIT), (5, address(c.place.relay)))])


@script
def server_id_override(c):
    c.behind_relay()
    info = [relay_info((1, CIRCUIT), (11, address(c.place.relay)))]
    c.selecting(c.discover(info), info)


@script
def relayed_init_reboot_to_another_network(c):
    c.behind_relay()
    c.init_reboot(STRANGE_SUBNET)


@script
def relayed_renewal_is_broadcast(c):
    c.behind_relay()
    own = c.bind()
    c.ask("REQUEST", [(55, PARAMETERS)], ciaddr=own)


# ---------------------------------------------------------------- BOOTP (RFC 951, RFC 1534)


@script
def bootp(c):
    c.ask(None, [])


@script
def bootp_of_a_reserved_client(c):
    c.mac = hardware(RESERVED[0])
    c.ask(None, [])


# ---------------------------------------------------------------- firmware, as captured


def firmware(name, file):
    def play(c):
        options, header = c.captured(f"{file}-discover.bin")
        offer = c.ask("DISCOVER", options, **header)
        options, header = c.captured(f"{file}-request.bin")
        c.ask("REQUEST", [(54, address(offer.ip(54))), (50, address(offer.yiaddr)), *options], **header)

    SCRIPTS[f"firmware: {name}"] = play


for _name, _file in (("iPXE of a BIOS", "ipxe-bios"), ("iPXE of UEFI", "ipxe-uefi"), ("OVMF PXE", "ovmf-pxe"),
                     ("OVMF HTTP boot", "ovmf-http"), ("ipconfig of an initramfs", "ipconfig"),
                     ("dhclient of cloud-init", "dhclient")):
    firmware(_name, _file)


# ---------------------------------------------------------------- what should not be


@script
def a_reply_is_not_a_query(c):
    c.ask("OFFER", [(54, address(c.place.server))], op=1)


@script
def hardware_address_of_no_length(c):
    c.ask("DISCOVER", [(55, PARAMETERS), (61, b"\0only-a-client-id")], hlen=0, htype=0, chaddr=b"")


@script
def too_many_hops(c):
    c.behind_relay()
    c.ask("DISCOVER", [(55, PARAMETERS)], hops=17)
