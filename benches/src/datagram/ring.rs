//! Our own: the shard's driver, with an echo in place of the protocols.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shard::{Bell, Completion, Driver, Target, Train};
use uring::{Places, Ring, RingLimits};

use super::{DATAGRAM, Meter};

const PATIENCE: Duration = Duration::from_secs(1);

pub fn serve(at: SocketAddr, meter: &mut Meter) -> Result<()> {
    let SocketAddr::V4(at) = at else {
        anyhow::bail!("{at} is no IPv4 address");
    };
    let places = Places {
        dhcp: Some(at),
        proxy_dhcp: None,
        tftp: None,
        http: None,
    };
    let sockets = uring::open(&places, 1).context("opening the socket")?;
    let sockets = sockets
        .into_iter()
        .next()
        .context("one shard has sockets")?;
    let bell = Bell::new().context("a bell")?;
    let mut ring = Ring::new(RingLimits::default(), sockets, bell).context("a ring")?;
    let mut done = Vec::new();
    loop {
        ring.poll(PATIENCE, &mut done).context("polling")?;
        let mut answered = 0;
        for completion in done.drain(..) {
            let Completion::Datagram(datagram) = completion else {
                continue;
            };
            let (IpAddr::V4(from), SocketAddr::V4(to)) = (datagram.local, datagram.from) else {
                ring.release(datagram.buffer);
                continue;
            };
            let mut octets = [0; DATAGRAM];
            let received = ring.bytes(&datagram.buffer);
            let length = received.len().min(DATAGRAM);
            octets[..length].copy_from_slice(&received[..length]);
            ring.release(datagram.buffer);
            let train = Train {
                bytes: length,
                segment_bytes: length,
            };
            let fill = &mut |slot: &mut [u8]| slot.copy_from_slice(&octets[..length]);
            let sent = ring.send(&Target::Dhcp { from, to }, train, fill);
            ensure!(sent.is_ok(), "no slot, with 64 requests in flight");
            answered += 1;
        }
        if meter.add(answered) {
            return Ok(());
        }
    }
}
