//! Cap'n Proto to the region's words and back. Everything a rack sends is checked here: lengths, counts, ranges.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use capnp::Error;
use capnp::data;
use ipnetwork::IpNetwork;
use lease::{
    AttachReply, Batch, BatchKey, BlockId, CLIENT_ID_BYTES_MAX, Client, ClientKey, Epoch,
    HeartbeatReply, Outcome, Refusal, SpoolId, Write, WriteKind,
};
use mac_address::MacAddress;
use model::{PowerCommand, PowerState};
use rpc::muster_capnp as wire;
use store::rack::Interface;
use store::region::Process;

use crate::power::{PowerFailure, PowerFailureClass, PowerOperation, PowerReport};

const INTERFACES_MAX: u32 = 1024;
const ADDRESSES_MAX: u32 = 64;
const EVENTS_MAX: u32 = 1024;
const STEPS_MAX: u32 = 256;
const STATS_MAX: usize = 16_384;
const CLAIMED_MAX: usize = 16_384;
const TEXT_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 255;
/// Durations that a rack may ask for; the longest lease is a day.
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

fn bad(what: &str) -> Error {
    Error::failed(format!("malformed {what}"))
}

/// Cut to what is stored or logged; a rack's text is not trusted to be short.
fn text(reader: capnp::text::Reader<'_>, bytes_max: usize) -> Result<String, Error> {
    let text = reader.to_str()?;
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // PostgreSQL's text holds no NUL.
    Ok(text[..end].replace('\0', "\u{fffd}"))
}

/// Letters, digits, dots, dashes and underscores; 1..=255 octets.
pub(crate) fn is_hostname(text: &str) -> bool {
    let valid = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(valid)
}

pub(crate) fn mac(octets: data::Reader<'_>) -> Result<[u8; 6], Error> {
    octets.try_into().map_err(|_| bad("MAC address"))
}

/// From 16 octets, IPv4 as v4-mapped.
pub(crate) fn address(octets: data::Reader<'_>) -> Result<IpAddr, Error> {
    let octets: [u8; 16] = octets.try_into().map_err(|_| bad("address"))?;
    Ok(Ipv6Addr::from(octets).to_canonical())
}

/// As `address`, but none when empty.
pub(crate) fn optional_address(octets: data::Reader<'_>) -> Result<Option<IpAddr>, Error> {
    if octets.is_empty() {
        Ok(None)
    } else {
        address(octets).map(Some)
    }
}

pub(crate) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// ---------------------------------------------------------------- hello

pub(crate) struct Hello {
    pub version: String,
    pub interfaces: Vec<Interface>,
}

pub(crate) fn hello(reader: wire::rack_hello::Reader<'_>) -> Result<Hello, Error> {
    if reader.get_protocol() == 0 {
        return Err(bad("protocol number"));
    }
    let list = reader.get_interfaces()?;
    if list.len() > INTERFACES_MAX {
        return Err(Error::failed(format!(
            "more than {INTERFACES_MAX} interfaces"
        )));
    }
    let interfaces = list.iter().map(interface).collect::<Result<_, _>>()?;
    Ok(Hello {
        version: text(reader.get_version()?, NAME_BYTES_MAX)?,
        interfaces,
    })
}

fn interface(reader: wire::rack_interface::Reader<'_>) -> Result<Interface, Error> {
    let list = reader.get_addresses()?;
    if list.len() > ADDRESSES_MAX {
        return Err(Error::failed(format!(
            "more than {ADDRESSES_MAX} addresses on an interface"
        )));
    }
    let mac = match reader.get_mac()? {
        [] => None,
        octets => Some(MacAddress::new(mac(octets)?)),
    };
    let addresses = list
        .iter()
        .map(|prefix| {
            let address = address(prefix.get_address()?)?;
            IpNetwork::new(address, prefix.get_length()).map_err(|_| bad("prefix length"))
        })
        .collect::<Result<_, Error>>()?;
    Ok(Interface {
        name: text(reader.get_name()?, NAME_BYTES_MAX)?,
        mac,
        addresses,
    })
}

/// Every address of every process.
pub(crate) fn put_regions<'a>(
    regions: &[Process],
    init: impl FnOnce(u32) -> capnp::struct_list::Builder<'a, wire::region_endpoint::Owned>,
) {
    let endpoints: Vec<_> = regions.iter().flat_map(crate::region_hosts).collect();
    let mut list = init(endpoints.len() as u32);
    for (i, (host, process)) in endpoints.iter().enumerate() {
        let mut endpoint = list.reborrow().get(i as u32);
        endpoint.set_host(host);
        endpoint.set_rpc_port(process.rpc_port);
        endpoint.set_rack_http_port(process.rack_http_port);
    }
}

// ---------------------------------------------------------------- leases

pub(crate) fn spool_id(octets: data::Reader<'_>) -> Result<SpoolId, Error> {
    octets.try_into().map(SpoolId).map_err(|_| bad("spool id"))
}

pub(crate) fn batch(reader: wire::lease_batch::Reader<'_>) -> Result<Batch, Error> {
    let list = reader.get_writes()?;
    if list.is_empty() || list.len() as usize > lease::BATCH_ROWS_MAX {
        return Err(bad("batch (1 to 512 writes)"));
    }
    let drained = list.get(0).get_drained();
    let mut writes = Vec::with_capacity(list.len() as usize);
    for reader in list {
        if reader.get_drained() != drained {
            return Err(bad("batch (drained and other writes together)"));
        }
        writes.push(write(reader)?);
    }
    let key = BatchKey {
        spool_id: spool_id(reader.get_spool_id()?)?,
        seq: reader.get_seq(),
    };
    Ok(Batch {
        key,
        drained,
        writes,
    })
}

fn write(reader: wire::lease_write::Reader<'_>) -> Result<Write, Error> {
    use wire::LeaseWriteKind as K;
    let duration = Duration::from_millis(reader.get_duration_ms()).min(DURATION_MAX);
    let client = || client(reader.get_client()?);
    let kind = match reader.get_kind()? {
        K::Grant => {
            let hostname = text(reader.get_hostname()?, NAME_BYTES_MAX)?.into();
            WriteKind::Grant {
                client: client()?,
                lease: duration,
                hostname,
            }
        }
        K::Extend => WriteKind::Extend {
            client: client()?,
            lease: duration,
        },
        K::Reclaim => WriteKind::Reclaim {
            client: client()?,
            silent: reader.get_silent(),
        },
        K::Quarantine => WriteKind::Quarantine { length: duration },
        K::Release => WriteKind::Release { client: client()? },
        K::Yield => WriteKind::Yield,
    };
    let address = match kind {
        WriteKind::Yield => Ipv6Addr::UNSPECIFIED.into(),
        _ => address(reader.get_address()?)?,
    };
    Ok(Write {
        block: BlockId(reader.get_block()),
        epoch: Epoch(reader.get_epoch()),
        address,
        kind,
    })
}

fn client(reader: wire::client_key::Reader<'_>) -> Result<Client, Error> {
    use wire::client_key::Which as W;
    let id = |octets: data::Reader<'_>| match octets.len() {
        1..=CLIENT_ID_BYTES_MAX => Ok(octets.into()),
        _ => Err(bad("client id")),
    };
    let key = match reader.which()? {
        W::Mac(octets) => ClientKey::Mac(mac(octets?)?),
        W::ClientId(octets) => ClientKey::ClientId(id(octets?)?),
        W::DuidIaid(octets) => ClientKey::DuidIaid(id(octets?)?),
    };
    Ok(Client {
        vlan: reader.get_vlan(),
        key,
    })
}

pub(crate) fn put_client(client: &Client, mut builder: wire::client_key::Builder<'_>) {
    builder.set_vlan(client.vlan);
    match &client.key {
        ClientKey::Mac(octets) => builder.set_mac(octets),
        ClientKey::ClientId(octets) => builder.set_client_id(octets),
        ClientKey::DuidIaid(octets) => builder.set_duid_iaid(octets),
    }
}

pub(crate) fn put_outcome(outcome: &Outcome, mut builder: wire::lease_outcome::Builder<'_>) {
    use wire::LeaseRefusal as R;
    builder.set_refused(match outcome {
        Outcome::Durable { remaining } => {
            builder.set_durable_ms(millis(*remaining).cast_signed());
            return;
        }
        Outcome::Done => return builder.set_done(()),
        Outcome::Refused(Refusal::StaleEpoch) => R::StaleEpoch,
        Outcome::Refused(Refusal::OtherClient) => R::OtherClient,
        Outcome::Refused(Refusal::NotOwner) => R::NotOwner,
        Outcome::Refused(Refusal::NotFound) => R::NotFound,
        Outcome::Refused(Refusal::NotEnded) => R::NotEnded,
        Outcome::Refused(Refusal::OutsideBlock) => R::OutsideBlock,
        // A region has neither; said so that no rack takes it for a grant.
        Outcome::Refused(Refusal::Mute) | Outcome::Unknown => R::NotOwner,
    });
}

pub(crate) fn put_heartbeat(
    reply: &HeartbeatReply,
    mut builder: wire::heartbeat_reply::Builder<'_>,
) {
    match reply {
        HeartbeatReply::Until(until) => builder.set_until_ms(millis(*until)),
        HeartbeatReply::Attach => builder.set_attach(()),
        HeartbeatReply::Wait => builder.set_wait(()),
    }
}

pub(crate) fn put_attachment(reply: &AttachReply, mut builder: wire::attachment::Builder<'_>) {
    let attachment = match reply {
        AttachReply::Attached(attachment) => attachment,
        AttachReply::Wait => return builder.set_state(wire::AttachState::Wait),
        AttachReply::Behind => return builder.set_state(wire::AttachState::Behind),
    };
    builder.set_until_ms(millis(attachment.until));
    let mut blocks = builder
        .reborrow()
        .init_blocks(attachment.blocks.len() as u32);
    for (i, block) in attachment.blocks.iter().enumerate() {
        let mut builder = blocks.reborrow().get(i as u32);
        builder.set_id(block.id.0);
        builder.set_epoch(block.epoch.0);
        builder.set_vlan(block.vlan);
        builder.set_subnet(block.subnet);
        builder.set_first(&octets(block.first));
        builder.set_count(block.count);
    }
    let mut rows = builder.init_rows(attachment.rows.len() as u32);
    for (i, row) in attachment.rows.iter().enumerate() {
        let mut builder = rows.reborrow().get(i as u32);
        builder.set_block(row.block.0);
        builder.set_address(&octets(row.address));
        if let Some(client) = &row.client {
            put_client(client, builder.reborrow().init_client());
        }
        builder.set_remaining_ms(row.remaining_ms);
        builder.set_quarantine_ms(millis(row.quarantine));
        builder.set_released(row.released);
    }
}

// ---------------------------------------------------------------- events

pub(crate) struct RackEvent {
    pub kind: String,
    pub mac: Option<[u8; 6]>,
    pub address: Option<IpAddr>,
    pub ago: Duration,
    pub detail: String,
    /// Of a BOOT_FILE: MAAS's name of the boot method; "" otherwise.
    pub boot_method: String,
}

pub(crate) fn events(
    list: capnp::struct_list::Reader<'_, wire::rack_event::Owned>,
) -> Result<Vec<RackEvent>, Error> {
    if list.len() > EVENTS_MAX {
        return Err(Error::failed(format!("more than {EVENTS_MAX} events")));
    }
    list.iter()
        .map(|event| {
            let octets = event.get_mac()?;
            Ok(RackEvent {
                kind: text(event.get_kind()?, NAME_BYTES_MAX)?,
                mac: if octets.is_empty() {
                    None
                } else {
                    Some(mac(octets)?)
                },
                address: optional_address(event.get_address()?)?,
                // A rack holds events back for minutes at most; more would be a wrong clock.
                ago: Duration::from_millis(event.get_ago_ms()).min(Duration::from_secs(24 * 3600)),
                detail: text(event.get_detail()?, TEXT_BYTES_MAX)?,
                boot_method: text(event.get_boot_method()?, NAME_BYTES_MAX)?,
            })
        })
        .collect()
}

// ---------------------------------------------------------------- statistics

pub(crate) fn stats(
    list: capnp::struct_list::Reader<'_, wire::stat::Owned>,
) -> Result<Vec<(String, u64)>, Error> {
    list.iter()
        .take(STATS_MAX)
        .map(|stat| Ok((text(stat.get_name()?, NAME_BYTES_MAX)?, stat.get_value())))
        .collect()
}

/// Blocks, and how many addresses of each some host answers for.
pub(crate) fn claimed(
    list: capnp::struct_list::Reader<'_, wire::claimed_block::Owned>,
) -> Vec<(i64, i32)> {
    let blocks = list.iter().take(CLAIMED_MAX);
    blocks
        .filter_map(|block| {
            let id = i64::try_from(block.get_block()).ok()?;
            Some((id, i32::try_from(block.get_addresses()).ok()?))
        })
        .collect()
}

// ---------------------------------------------------------------- power

pub(crate) fn put_operation(
    operation: &PowerOperation,
    mut builder: wire::power_operation::Builder<'_>,
) {
    use wire::PowerCommand as C;
    builder.set_id(&operation.id);
    builder.set_driver(&operation.driver);
    builder.set_command(match operation.command {
        PowerCommand::Query => C::Query,
        PowerCommand::On => C::On,
        PowerCommand::Off => C::Off,
        PowerCommand::Cycle => C::Cycle,
        PowerCommand::PxeOn => C::PxeOn,
    });
    builder.set_parameters(operation.parameters.expose());
    builder.set_deadline_ms(u32::try_from(millis(operation.deadline)).unwrap_or(u32::MAX));
}

pub(crate) fn report(reader: wire::power_report::Reader<'_>) -> Result<PowerReport, Error> {
    use wire::power_report::Which;
    let steps = reader.get_steps()?;
    let steps = steps
        .iter()
        .take(STEPS_MAX as usize)
        .map(|step| text(step?, TEXT_BYTES_MAX))
        .collect::<Result<_, _>>()?;
    let failure = match reader.which()? {
        Which::Done(()) => None,
        Which::Failed(failure) => {
            let failure = failure?;
            use wire::PowerFailureClass as F;
            let class = match failure.get_class()? {
                F::Unreachable => PowerFailureClass::Unreachable,
                F::Credentials => PowerFailureClass::Credentials,
                F::Refused => PowerFailureClass::Refused,
                F::Timeout => PowerFailureClass::Timeout,
                F::Parameters => PowerFailureClass::Parameters,
                F::Busy => PowerFailureClass::Busy,
            };
            let message = text(failure.get_message()?, TEXT_BYTES_MAX)?;
            Some(PowerFailure { class, message })
        }
    };
    let state = match reader.get_state()? {
        wire::PowerState::Unknown => PowerState::Unknown,
        wire::PowerState::On => PowerState::On,
        wire::PowerState::Off => PowerState::Off,
        wire::PowerState::Error => PowerState::Error,
    };
    Ok(PowerReport {
        state,
        steps,
        failure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_family() {
        for text in ["10.0.0.1", "fd00::1", "::"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(address(&octets(ip)).unwrap(), ip);
        }
        assert!(address(&[0; 4]).is_err());
        assert_eq!(optional_address(&[]).unwrap(), None);
    }

    #[test]
    fn hostnames_are_plain() {
        for (text, valid) in [
            ("rack-1.lab", true),
            ("a_b", true),
            ("", false),
            ("a b", false),
            ("ä", false),
        ] {
            assert_eq!(is_hostname(text), valid, "{text}");
        }
        assert!(!is_hostname(&"a".repeat(256)));
    }

    fn build(write: impl FnOnce(wire::lease_batch::Builder<'_>)) -> Result<Batch, Error> {
        let mut message = capnp::message::Builder::new_default();
        write(message.init_root());
        batch(message.get_root_as_reader().unwrap())
    }

    #[test]
    fn a_batch_is_whole_or_refused() {
        assert!(build(|_| {}).is_err(), "no writes");
        let too_many = build(|b| {
            b.init_writes(513);
        });
        assert!(too_many.is_err());
        let one = |drained: bool, bad_mac: bool| {
            build(|mut b| {
                b.set_spool_id(&[7; 16]);
                b.set_seq(3);
                let mut writes = b.init_writes(2);
                for i in 0..2 {
                    let mut write = writes.reborrow().get(i);
                    write.set_address(&octets("10.0.0.9".parse().unwrap()));
                    write.set_duration_ms(600_000);
                    write.set_hostname("h");
                    write.set_drained(drained && i == 0);
                    let mac: &[u8] = if bad_mac { &[1; 5] } else { &[2; 6] };
                    write.init_client().set_mac(mac);
                }
            })
        };
        assert!(one(true, false).is_err(), "mixed");
        assert!(one(false, true).is_err(), "short MAC");
        let batch = one(false, false).unwrap();
        assert_eq!(
            (batch.key.seq, batch.drained, batch.writes.len()),
            (3, false, 2)
        );
        let WriteKind::Grant {
            client,
            lease,
            hostname,
        } = &batch.writes[0].kind
        else {
            panic!()
        };
        assert_eq!(client.key, ClientKey::Mac([2; 6]));
        assert_eq!((lease.as_secs(), &**hostname), (600, "h"));
    }
}
