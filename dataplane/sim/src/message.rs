//! What goes to and fro between clients and racks. A rack's engine sees it as octets ([`crate::engine`]).

use std::net::Ipv4Addr;
use std::time::Duration;

pub(crate) use wire::dhcp4::MessageType as Kind;

#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub kind: Kind,
    pub client: usize,
    /// Where the client is.
    pub vlan: usize,
    pub xid: u32,
    /// Seconds since the exchange began.
    pub secs: u16,
    pub ciaddr: Option<Ipv4Addr>,
    pub requested: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
    /// To one server, past the relay.
    pub unicast: bool,
    /// By way of the relay.
    pub relayed: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub kind: Kind,
    pub rack: usize,
    pub client: usize,
    pub vlan: usize,
    pub xid: u32,
    pub address: Ipv4Addr,
    pub server: Ipv4Addr,
    /// None: the answer to an INFORM, or a NAK.
    pub lease: Option<Duration>,
    /// To be sent through the relay.
    pub relayed: bool,
}

/// Every client has a MAC of its own.
pub(crate) fn mac_of(client: usize) -> [u8; 6] {
    let [.., high, low] = (client as u64).to_be_bytes();
    [0x52, 0x54, 0, 0, high, low]
}

pub(crate) fn client_of(mac: [u8; 6]) -> usize {
    usize::from(mac[4]) << 8 | usize::from(mac[5])
}

/// The link thread's name of a client.
pub(crate) fn lease_client(client: usize, vlan: usize) -> lease::Client {
    lease::Client {
        vlan: crate::plan::vlan_id(vlan),
        key: lease::ClientKey::Mac(mac_of(client)),
    }
}
