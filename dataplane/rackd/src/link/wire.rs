//! Cap'n Proto to the rack's words and back. A region is trusted with what it says, not with how it is said: what cannot be
//! read is an error of that call, never a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use capnp::Error;
use capnp::data;
use ipnet::Ipv4Net;
use lease::{
    AttachReply, Attachment, Batch, Block, BlockId, Client, ClientKey, Epoch, HeartbeatReply,
    Outcome, Refusal, Row, WriteKind,
};
use rpc::muster_capnp as wire;
use wire::heartbeat_reply::Which as Beat;

use super::connect::Endpoint;
use super::interfaces::Interface;

/// Machines followed at once, and for how long.
const TRACES_MAX: usize = 16;
const TRACE_MAX: Duration = Duration::from_secs(86_400);

fn bad(what: &str) -> Error {
    Error::failed(format!("malformed {what}"))
}

pub(super) fn text(reader: capnp::text::Reader<'_>) -> Result<String, Error> {
    Ok(reader.to_str()?.to_owned())
}

pub(super) fn mac(octets: data::Reader<'_>) -> Result<[u8; 6], Error> {
    octets.try_into().map_err(|_| bad("MAC address"))
}

pub(super) fn sha256(octets: data::Reader<'_>) -> Result<[u8; 32], Error> {
    octets.try_into().map_err(|_| bad("SHA-256"))
}

/// From 16 octets, IPv4 as v4-mapped.
pub(super) fn address(octets: data::Reader<'_>) -> Result<IpAddr, Error> {
    let octets: [u8; 16] = octets.try_into().map_err(|_| bad("address"))?;
    Ok(Ipv6Addr::from(octets).to_canonical())
}

fn v4(octets: data::Reader<'_>) -> Result<Option<Ipv4Addr>, Error> {
    Ok(match address(octets)? {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    })
}

pub(super) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// ---------------------------------------------------------------- hello

pub(super) fn put_interfaces(list: &[Interface], mut builder: wire::rack_hello::Builder<'_>) {
    let mut builders = builder.reborrow().init_interfaces(list.len() as u32);
    for (i, interface) in list.iter().enumerate() {
        let mut builder = builders.reborrow().get(i as u32);
        builder.set_name(&interface.name);
        if let Some(mac) = &interface.mac {
            builder.set_mac(mac);
        }
        let mut prefixes = builder.init_addresses(interface.addresses.len() as u32);
        for (i, (address, length)) in interface.addresses.iter().enumerate() {
            let mut prefix = prefixes.reborrow().get(i as u32);
            prefix.set_address(&octets(*address));
            prefix.set_length(*length);
        }
    }
}

/// What a region said at hello.
#[derive(Clone, Debug)]
pub(super) struct Welcome {
    /// The regiond process.
    pub region: String,
    /// (RPC endpoint, rack HTTP port) of every live process.
    pub regions: Vec<(Endpoint, u16)>,
    /// Renew the certificate when less is left.
    pub renew: Duration,
}

pub(super) fn welcome(reader: wire::welcome::Reader<'_>) -> Result<Welcome, Error> {
    Ok(Welcome {
        region: text(reader.get_region()?)?,
        regions: regions(reader.get_regions()?)?,
        renew: Duration::from_millis(reader.get_certificate_renew_ms()),
    })
}

pub(super) fn regions(
    list: capnp::struct_list::Reader<'_, wire::region_endpoint::Owned>,
) -> Result<Vec<(Endpoint, u16)>, Error> {
    list.iter()
        .map(|endpoint| {
            let host = text(endpoint.get_host()?)?;
            Ok((
                Endpoint {
                    host,
                    port: endpoint.get_rpc_port(),
                },
                endpoint.get_rack_http_port(),
            ))
        })
        .collect()
}

// ---------------------------------------------------------------- leases

pub(super) fn put_batch(batch: &Batch, mut builder: wire::lease_batch::Builder<'_>) {
    use wire::LeaseWriteKind as K;
    builder.set_spool_id(&batch.key.spool_id.0);
    builder.set_seq(batch.key.seq);
    let mut writes = builder.init_writes(batch.writes.len() as u32);
    for (i, write) in batch.writes.iter().enumerate() {
        let mut builder = writes.reborrow().get(i as u32);
        builder.set_block(write.block.0);
        builder.set_epoch(write.epoch.0);
        builder.set_address(&octets(write.address));
        builder.set_drained(batch.drained);
        let (kind, client) = match &write.kind {
            WriteKind::Grant {
                client,
                lease,
                hostname,
            } => {
                builder.set_duration_ms(millis(*lease));
                builder.set_hostname(hostname);
                (K::Grant, Some(client))
            }
            WriteKind::Extend { client, lease } => {
                builder.set_duration_ms(millis(*lease));
                (K::Extend, Some(client))
            }
            WriteKind::Reclaim { client, silent } => {
                builder.set_silent(*silent);
                (K::Reclaim, Some(client))
            }
            WriteKind::Quarantine { length } => {
                builder.set_duration_ms(millis(*length));
                (K::Quarantine, None)
            }
            WriteKind::Release { client } => (K::Release, Some(client)),
            WriteKind::Yield => (K::Yield, None),
        };
        builder.set_kind(kind);
        if let Some(client) = client {
            let mut builder = builder.init_client();
            builder.set_vlan(client.vlan);
            match &client.key {
                ClientKey::Mac(octets) => builder.set_mac(octets),
                ClientKey::ClientId(octets) => builder.set_client_id(octets),
                ClientKey::DuidIaid(octets) => builder.set_duid_iaid(octets),
            }
        }
    }
}

pub(super) fn outcome(reader: wire::lease_outcome::Reader<'_>) -> Result<Outcome, Error> {
    use wire::LeaseRefusal as R;
    use wire::lease_outcome::Which as W;
    Ok(match reader.which()? {
        // A durable end that has passed promises nothing.
        W::DurableMs(ms) => Outcome::Durable {
            remaining: Duration::from_millis(u64::try_from(ms).unwrap_or(0)),
        },
        W::Done(()) => Outcome::Done,
        W::Refused(refusal) => Outcome::Refused(match refusal? {
            R::StaleEpoch => Refusal::StaleEpoch,
            R::OtherClient => Refusal::OtherClient,
            R::NotOwner => Refusal::NotOwner,
            R::NotFound => Refusal::NotFound,
            R::NotEnded => Refusal::NotEnded,
            R::OutsideBlock => Refusal::OutsideBlock,
        }),
    })
}

pub(super) fn heartbeat(
    reader: wire::heartbeat_reply::Reader<'_>,
) -> Result<HeartbeatReply, Error> {
    Ok(match reader.which()? {
        Beat::UntilMs(ms) => HeartbeatReply::Until(Duration::from_millis(ms)),
        Beat::Attach(()) => HeartbeatReply::Attach,
        Beat::Wait(()) => HeartbeatReply::Wait,
    })
}

pub(super) fn attachment(reader: wire::attachment::Reader<'_>) -> Result<AttachReply, Error> {
    match reader.get_state()? {
        wire::AttachState::Attached => {}
        wire::AttachState::Wait => return Ok(AttachReply::Wait),
        wire::AttachState::Behind => return Ok(AttachReply::Behind),
    }
    let block = |block: wire::block::Reader<'_>| {
        Ok(Block {
            id: BlockId(block.get_id()),
            epoch: Epoch(block.get_epoch()),
            vlan: block.get_vlan(),
            subnet: block.get_subnet(),
            first: address(block.get_first()?)?,
            count: block.get_count(),
        })
    };
    let row = |row: wire::lease_row::Reader<'_>| {
        Ok(Row {
            block: BlockId(row.get_block()),
            address: address(row.get_address()?)?,
            client: if row.has_client() {
                Some(client(row.get_client()?)?)
            } else {
                None
            },
            remaining_ms: row.get_remaining_ms(),
            quarantine: Duration::from_millis(row.get_quarantine_ms()),
            released: row.get_released(),
        })
    };
    Ok(AttachReply::Attached(Attachment {
        until: Duration::from_millis(reader.get_until_ms()),
        blocks: reader
            .get_blocks()?
            .iter()
            .map(block)
            .collect::<Result<_, Error>>()?,
        rows: reader
            .get_rows()?
            .iter()
            .map(row)
            .collect::<Result<_, Error>>()?,
    }))
}

fn client(reader: wire::client_key::Reader<'_>) -> Result<Client, Error> {
    use wire::client_key::Which as W;
    let key = match reader.which()? {
        W::Mac(octets) => ClientKey::Mac(mac(octets?)?),
        W::ClientId(octets) => ClientKey::ClientId(octets?.into()),
        W::DuidIaid(octets) => ClientKey::DuidIaid(octets?.into()),
    };
    Ok(Client {
        vlan: reader.get_vlan(),
        key,
    })
}

// ---------------------------------------------------------------- the feed's items

/// A link with the name of its device ("" where a relay brings its queries).
#[derive(Clone, Debug)]
pub(super) struct LinkItem {
    pub interface: String,
    pub dhcp: dhcp::Link,
}

/// `None`: nothing of it is IPv4.
pub(super) fn link(reader: wire::link::Reader<'_>) -> Result<Option<LinkItem>, Error> {
    let Some(server) = v4(reader.get_server_address()?)? else {
        return Ok(None);
    };
    let mut subnets = Vec::new();
    for reader in reader.get_subnets()? {
        subnets.extend(subnet(reader)?);
    }
    Ok(Some(LinkItem {
        interface: text(reader.get_interface()?)?,
        dhcp: dhcp::Link {
            vlan: reader.get_vlan(),
            server,
            mtu: reader.get_mtu(),
            mode: match reader.get_mode()? {
                wire::DhcpMode::Serve => dhcp::Mode::Serve,
                wire::DhcpMode::Proxy => dhcp::Mode::Proxy,
            },
            rack: reader.get_rack(),
            peers: peers(reader.get_peers()?)?,
            subnets,
        },
    }))
}

fn peers(
    readers: capnp::struct_list::Reader<'_, wire::peer::Owned>,
) -> Result<Vec<dhcp::Peer>, Error> {
    let mut peers = Vec::new();
    for reader in readers {
        if let Some(server) = v4(reader.get_server()?)? {
            peers.push(dhcp::Peer {
                rack: reader.get_rack(),
                server,
                alive: reader.get_alive(),
            });
        }
    }
    Ok(peers)
}

fn options(
    readers: capnp::struct_list::Reader<'_, wire::dhcp_option::Owned>,
) -> Result<Arc<[dhcp::DhcpOption]>, Error> {
    let option = |reader: wire::dhcp_option::Reader<'_>| {
        Ok(dhcp::DhcpOption {
            code: reader.get_code(),
            value: reader.get_value()?.into(),
            always: reader.get_always(),
        })
    };
    readers.iter().map(option).collect()
}

/// Zero stands for "as the wider scope says".
fn lease(secs: u32) -> Option<Duration> {
    (secs > 0).then(|| Duration::from_secs(u64::from(secs)))
}

fn subnet(reader: wire::subnet::Reader<'_>) -> Result<Option<dhcp::Subnet>, Error> {
    let prefix = reader.get_prefix()?;
    let Some(network) = v4(prefix.get_address()?)? else {
        return Ok(None);
    };
    let net = Ipv4Net::new(network, prefix.get_length()).map_err(|_| bad("prefix length"))?;
    let list = |list: capnp::data_list::Reader<'_>| -> Result<Vec<Ipv4Addr>, Error> {
        list.iter()
            .filter_map(|octets| octets.and_then(v4).transpose())
            .collect()
    };
    let mut ranges = Vec::new();
    for range in reader.get_ranges()? {
        if let (Some(first), Some(last)) = (v4(range.get_first()?)?, v4(range.get_last()?)?) {
            let kind = match range.get_kind()? {
                wire::RangeKind::Dynamic => dhcp::RangeKind::Dynamic,
                wire::RangeKind::Reserved => dhcp::RangeKind::Reserved,
            };
            ranges.push(dhcp::Range {
                id: range.get_id(),
                first,
                last,
                kind,
                lease: lease(range.get_lease_secs()),
                options: options(range.get_options()?)?,
            });
        }
    }
    let gateway = reader.get_gateway()?;
    Ok(Some(dhcp::Subnet {
        id: reader.get_id(),
        net: net.trunc(),
        gateway: if gateway.is_empty() {
            None
        } else {
            v4(gateway)?
        },
        dns: list(reader.get_dns_servers()?)?,
        ntp: list(reader.get_ntp_servers()?)?,
        domain: text(reader.get_domain()?)?,
        lease: Duration::from_secs(u64::from(reader.get_lease_secs())),
        ranges,
        disabled_archs: reader
            .get_disabled_archs()?
            .iter()
            .map(|arch| text(arch?))
            .collect::<Result<_, Error>>()?,
        client_id_identity: reader.get_client_id_identity(),
        options: options(reader.get_options()?)?,
    }))
}

fn reservation_key(reader: wire::reservation::Reader<'_>) -> Result<dhcp::ReservationKey, Error> {
    if reader.has_client_id() {
        return Ok(dhcp::ReservationKey::ClientId(
            reader.get_client_id()?.into(),
        ));
    }
    if reader.has_circuit_id() {
        return Ok(dhcp::ReservationKey::Circuit {
            circuit: reader.get_circuit_id()?.into(),
            remote: reader.get_remote_id()?.into(),
        });
    }
    let mac = ::wire::ethernet::Mac(mac(reader.get_mac()?)?);
    Ok(dhcp::ReservationKey::Mac(mac))
}

/// `None`: it is not IPv4.
pub(super) fn reservation(
    reader: wire::reservation::Reader<'_>,
) -> Result<Option<dhcp::Reservation>, Error> {
    let Some(address) = v4(reader.get_address()?)? else {
        return Ok(None);
    };
    Ok(Some(dhcp::Reservation {
        vlan: reader.get_vlan(),
        subnet: reader.get_subnet(),
        key: reservation_key(reader)?,
        address,
        hostname: text(reader.get_hostname()?)?,
        lease: lease(reader.get_lease_secs()),
        options: options(reader.get_options()?)?,
    }))
}

/// The machines to be followed from `now` on; what is over the limit is left out.
pub(super) fn traces(
    readers: capnp::struct_list::Reader<'_, wire::trace::Owned>,
    now: std::time::Instant,
) -> Result<Arc<[shard::Trace]>, Error> {
    let trace = |reader: wire::trace::Reader<'_>| {
        let left = Duration::from_millis(reader.get_remaining_ms()).min(TRACE_MAX);
        Ok(shard::Trace {
            mac: ::wire::ethernet::Mac(mac(reader.get_mac()?)?),
            until: now + left,
        })
    };
    readers.iter().take(TRACES_MAX).map(trace).collect()
}

// ---------------------------------------------------------------- queries and events

pub(super) fn put_query(
    query: &shard::BootQuery,
    mac: [u8; 6],
    mut builder: wire::boot_query::Builder<'_>,
) {
    builder.set_mac(&mac);
    builder.set_arch(&query.arch);
    builder.set_address(&octets(query.address));
    builder.set_vlan(query.vlan);
}

pub(super) fn put_event(
    event: &shard::Event,
    now: std::time::Instant,
    mut builder: wire::rack_event::Builder<'_>,
) {
    builder.set_kind(event.kind);
    if let Some(mac) = &event.mac {
        builder.set_mac(mac);
    }
    builder.set_address(&octets(event.address));
    builder.set_ago_ms(millis(now.saturating_duration_since(event.at)));
    builder.set_detail(event.detail.to_string());
    if let shard::Detail::BootFile(told) = &event.detail {
        builder.set_boot_method(told.method());
    }
}

#[cfg(test)]
mod tests {
    use lease::{BatchKey, SpoolId, Write};

    use super::*;

    #[test]
    fn a_batch_says_everything() {
        let client = Client {
            vlan: 5001,
            key: ClientKey::ClientId(Box::new([1, 2])),
        };
        let write = |kind| Write {
            block: BlockId(7),
            epoch: Epoch(9),
            address: "10.0.0.9".parse().unwrap(),
            kind,
        };
        let lease = Duration::from_secs(600);
        let batch = Batch {
            key: BatchKey {
                spool_id: SpoolId([3; 16]),
                seq: 5,
            },
            drained: true,
            writes: vec![
                write(WriteKind::Grant {
                    client: client.clone(),
                    lease,
                    hostname: "h".into(),
                }),
                write(WriteKind::Quarantine { length: lease }),
            ],
        };
        let mut message = capnp::message::Builder::new_default();
        put_batch(&batch, message.init_root());
        let reader: wire::lease_batch::Reader<'_> = message.get_root_as_reader().unwrap();
        let grant = reader.get_writes().unwrap().get(0);
        assert_eq!(
            (
                grant.get_block(),
                grant.get_epoch(),
                grant.get_duration_ms()
            ),
            (7, 9, 600_000)
        );
        assert!(grant.get_drained());
        assert_eq!(self::client(grant.get_client().unwrap()).unwrap(), client);
        let quarantine = reader.get_writes().unwrap().get(1);
        assert!(!quarantine.has_client());
        assert_eq!(
            quarantine.get_kind().unwrap(),
            wire::LeaseWriteKind::Quarantine
        );
    }

    #[test]
    fn few_machines_are_followed_and_none_for_ever() {
        let mut message = capnp::message::Builder::new_default();
        let settings = message.init_root::<wire::settings::Builder<'_>>();
        let mut list = settings.init_traces(20);
        for n in 0..20 {
            let mut trace = list.reborrow().get(n);
            trace.set_mac(&[2, 0, 0, 0, 0, n as u8]);
            trace.set_remaining_ms(if n == 0 { u64::MAX } else { 1_000 });
        }
        let now = std::time::Instant::now();
        let read: wire::settings::Reader<'_> = message.get_root_as_reader().unwrap();
        let traces = traces(read.get_traces().unwrap(), now).unwrap();
        assert_eq!(traces.len(), TRACES_MAX);
        assert_eq!(traces[0].until, now + TRACE_MAX);
        assert_eq!(traces[1].until, now + Duration::from_secs(1));
        let mac = ::wire::ethernet::Mac([2, 0, 0, 0, 0, 1]);
        let mut snapshot = shard::Snapshot::default();
        snapshot.traces = traces;
        assert!(snapshot.is_traced(mac, now));
        assert!(
            !snapshot.is_traced(mac, now + Duration::from_secs(2)),
            "it ends by itself"
        );
    }

    #[test]
    fn an_attachment_is_attached_only_when_it_says_so() {
        let mut message = capnp::message::Builder::new_default();
        let mut builder = message.init_root::<wire::attachment::Builder<'_>>();
        builder.set_until_ms(86_400_000);
        let mut row = builder.reborrow().init_rows(1).get(0);
        row.set_address(&octets("10.0.0.9".parse().unwrap()));
        row.set_remaining_ms(-5);
        let read =
            |builder: &wire::attachment::Builder<'_>| attachment(builder.reborrow_as_reader());
        let AttachReply::Attached(attached) = read(&builder).unwrap() else {
            panic!()
        };
        assert_eq!(
            (
                attached.rows[0].client.clone(),
                attached.rows[0].remaining_ms
            ),
            (None, -5)
        );
        builder.set_state(wire::AttachState::Wait);
        assert_eq!(read(&builder).unwrap(), AttachReply::Wait);
    }
}
