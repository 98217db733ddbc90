//! The floor of `cargo xtask bench dhcp`: a loop that knows nothing and answers everything. One system call to receive, one to
//! send; the address is made from the client's MAC, no lease is kept, nothing is checked. No DHCP server can cost less
//! on these sockets than what this costs.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use anyhow::{Context, Result};
use clap::Parser;
use socket2::SockRef;
use wire::dhcp4::{FLAG_BROADCAST, Header, LeaseTimes, MessageType, OP_REPLY, View, Writer, code};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    interface: String,
    /// Our own address, on the clients' link.
    #[arg(long)]
    server: Ipv4Addr,
    /// Clients have the addresses from here on, by the last three octets of their MAC.
    #[arg(long)]
    first: Ipv4Addr,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).context("binding to port 67")?;
    socket.set_broadcast(true).context("allowing broadcasts")?;
    // A broadcast to everybody has no route of its own.
    SockRef::from(&socket)
        .bind_device(Some(arguments.interface.as_bytes()))
        .context("binding to the interface")?;
    let (mut question, mut answer) = ([0; 2048], vec![0; 1472]);
    loop {
        let (length, _) = socket.recv_from(&mut question).context("receiving")?;
        let Ok(view) = View::parse(&question[..length]) else {
            continue;
        };
        if let Some((length, to)) = reply(&view, &arguments, &mut answer) {
            socket.send_to(&answer[..length], to).context("answering")?;
        }
    }
}

fn reply(
    view: &View<'_>,
    arguments: &Arguments,
    buffer: &mut [u8],
) -> Option<(usize, SocketAddrV4)> {
    let kind = match view.message_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request => MessageType::Ack,
        _ => return None,
    };
    let [_, _, _, a, b, c] = view.mac()?.0;
    let client = u32::from(arguments.first).wrapping_add(u32::from_be_bytes([0, a, b, c]));
    let mut header = Header::new(OP_REPLY);
    header.htype = view.htype();
    header.hlen = view.hlen();
    header.xid.set(view.xid());
    header.flags.set(view.flags());
    header.yiaddr = client.to_be_bytes();
    header.giaddr = view.giaddr().octets();
    header.chaddr = view.header().chaddr;
    let mut writer = Writer::new(buffer, 1472, &header, kind).ok()?;
    writer.address(code::SERVER_ID, arguments.server).ok()?;
    writer.lease_times(LeaseTimes::of(600)).ok()?;
    let length = writer.finish();
    let to = match view.giaddr() {
        relay if !relay.is_unspecified() => SocketAddrV4::new(relay, 67),
        _ if view.flags() & FLAG_BROADCAST != 0 => SocketAddrV4::new(Ipv4Addr::BROADCAST, 68),
        _ => return None,
    };
    Some((length, to))
}
