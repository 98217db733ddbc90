//! How ranges, options and reservations are written for a rack.

use std::net::{IpAddr, Ipv4Addr};

use rpc::muster_capnp as wire;
use store::feed::{OptionValue, RangeValue, ReservationValue};
use store::reservation::Key;

use crate::wire::octets;

/// A dynamic range is told without what reserved ranges exclude of it: in pieces, all with the range's id.
pub(super) fn put_ranges<'a>(
    ranges: &[RangeValue],
    init: impl FnOnce(u32) -> capnp::struct_list::Builder<'a, wire::address_range::Owned>,
) {
    let told: Vec<(&RangeValue, (IpAddr, IpAddr))> = ranges
        .iter()
        .flat_map(|range| pieces(range, ranges).map(move |piece| (range, piece)))
        .collect();
    let mut list = init(told.len() as u32);
    for (i, (range, (first, last))) in told.into_iter().enumerate() {
        let mut builder = list.reborrow().get(i as u32);
        builder.set_id(range.id.unsigned_abs());
        builder.set_first(&octets(first));
        builder.set_last(&octets(last));
        builder.set_kind(match range.is_dynamic {
            true => wire::RangeKind::Dynamic,
            false => wire::RangeKind::Reserved,
        });
        builder.set_lease_secs(range.lease_secs.unwrap_or(0));
        put_options(&range.options, |n| builder.reborrow().init_options(n));
    }
}

/// What is left of a range; `all` are its subnet's, by first address.
fn pieces(range: &RangeValue, all: &[RangeValue]) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    let mut pieces = Vec::new();
    match (range.first, range.last) {
        (IpAddr::V4(first), IpAddr::V4(last)) if range.is_dynamic => {
            // One more than the last address may not be an address.
            let (mut next, end) = (u64::from(u32::from(first)), u64::from(u32::from(last)));
            let v4 =
                |number: u64| IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)));
            for other in all.iter().filter(|other| !other.is_dynamic) {
                let (IpAddr::V4(from), IpAddr::V4(to)) = (other.first, other.last) else {
                    continue;
                };
                let (from, to) = (u64::from(u32::from(from)), u64::from(u32::from(to)));
                if to < next || from > end {
                    continue;
                }
                if from > next {
                    pieces.push((v4(next), v4(from - 1)));
                }
                next = to + 1;
            }
            if next <= end {
                pieces.push((v4(next), v4(end)));
            }
        }
        (first, last) => pieces.push((first, last)),
    }
    pieces.into_iter()
}

pub(super) fn put_options<'a>(
    options: &[OptionValue],
    init: impl FnOnce(u32) -> capnp::struct_list::Builder<'a, wire::dhcp_option::Owned>,
) {
    if options.is_empty() {
        return;
    }
    let mut list = init(options.len() as u32);
    for (i, option) in options.iter().enumerate() {
        let mut builder = list.reborrow().get(i as u32);
        builder.set_code(option.code);
        builder.set_value(&option.value);
        builder.set_always(option.always);
    }
}

pub(super) fn put_reservation(
    reservation: &ReservationValue,
    mut builder: wire::reservation::Builder<'_>,
) {
    builder.set_vlan(reservation.vlan.unsigned_abs());
    builder.set_subnet(reservation.subnet.unsigned_abs());
    match &reservation.key {
        Key::Mac(mac) => builder.set_mac(mac),
        Key::ClientId(id) => builder.set_client_id(id.octets()),
        Key::Circuit { circuit, remote } => {
            builder.set_circuit_id(circuit.octets());
            if let Some(remote) = remote {
                builder.set_remote_id(remote.octets());
            }
        }
    }
    builder.set_address(&octets(reservation.address));
    builder.set_hostname(&reservation.hostname);
    builder.set_lease_secs(reservation.lease_secs.unwrap_or(0));
    put_options(&reservation.options, |n| builder.reborrow().init_options(n));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(id: i32, text: &str, is_dynamic: bool) -> RangeValue {
        let (first, last) = text.split_once('-').unwrap();
        RangeValue {
            id,
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
            is_dynamic,
            lease_secs: Some(60),
            options: vec![OptionValue {
                code: 42,
                value: vec![1],
                always: true,
            }],
        }
    }

    #[test]
    fn a_dynamic_range_is_told_without_what_is_excluded() {
        let ranges = [
            range(1, "10.0.0.10-10.0.0.99", true),
            range(2, "10.0.0.10-10.0.0.12", false),
            range(3, "10.0.0.20-10.0.0.29", false),
            range(4, "10.0.0.90-10.0.0.99", false),
            range(5, "10.0.0.200-10.0.0.201", false),
            range(6, "fd00::1-fd00::9", true),
        ];
        let mut message = capnp::message::Builder::new_default();
        let mut subnet = message.init_root::<wire::subnet::Builder<'_>>();
        put_ranges(&ranges, |n| subnet.reborrow().init_ranges(n));
        let told: Vec<String> = subnet
            .into_reader()
            .get_ranges()
            .unwrap()
            .iter()
            .map(|range| {
                let address = |octets| crate::wire::address(octets).unwrap();
                assert_eq!(range.get_lease_secs(), 60);
                let option = range.get_options().unwrap().get(0);
                assert_eq!((option.get_code(), option.get_always()), (42, true));
                format!(
                    "{} {}-{} {:?}",
                    range.get_id(),
                    address(range.get_first().unwrap()),
                    address(range.get_last().unwrap()),
                    range.get_kind().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                "1 10.0.0.13-10.0.0.19 Dynamic",
                "1 10.0.0.30-10.0.0.89 Dynamic",
                "2 10.0.0.10-10.0.0.12 Reserved",
                "3 10.0.0.20-10.0.0.29 Reserved",
                "4 10.0.0.90-10.0.0.99 Reserved",
                "5 10.0.0.200-10.0.0.201 Reserved",
                "6 fd00::1-fd00::9 Dynamic",
            ]
        );
    }

    #[test]
    fn a_reservation_says_whom_it_is_for() {
        let id = |text: &str| text.parse().unwrap();
        let keys = [
            Key::Mac([2, 0, 0, 0, 0, 1]),
            Key::ClientId(id("0x01aa")),
            Key::Circuit {
                circuit: id("port7"),
                remote: None,
            },
            Key::Circuit {
                circuit: id("port7"),
                remote: Some(id("switch1")),
            },
        ];
        let mut told = Vec::new();
        for key in keys {
            let value = ReservationValue {
                vlan: 5001,
                subnet: 7,
                key,
                address: "10.0.0.5".parse().unwrap(),
                hostname: "h".into(),
                lease_secs: None,
                options: Vec::new(),
            };
            let mut message = capnp::message::Builder::new_default();
            put_reservation(&value, message.init_root());
            let read: wire::reservation::Reader<'_> = message.get_root_as_reader().unwrap();
            told.push((
                read.has_mac(),
                read.get_client_id().unwrap().to_vec(),
                read.get_circuit_id().unwrap().to_vec(),
                read.get_remote_id().unwrap().to_vec(),
            ));
        }
        let octets = |text: &[u8]| text.to_vec();
        assert_eq!(
            told,
            [
                (true, vec![], vec![], vec![]),
                (false, vec![1, 0xaa], vec![], vec![]),
                (false, vec![], octets(b"port7"), vec![]),
                (false, vec![], octets(b"port7"), octets(b"switch1")),
            ]
        );
    }
}
