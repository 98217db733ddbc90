//! What ACKs promised, and what may not be true of them. Pure: a record in, faults out.
//!
//! A client may use its address from the arrival of an ACK for the time that it names. (RFC 2131 §4.4.1 lets it count
//! from its REQUEST, which is earlier: arrival is the stricter view.)

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::dhcp_lab::Seen;

/// One ACK.
#[derive(Clone, Debug, PartialEq)]
pub struct Promise {
    pub mac: String,
    pub address: Ipv4Addr,
    /// Unix time.
    pub from_secs: f64,
    pub until_secs: f64,
}

/// A row of the region's lease table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub mac: String,
    pub ends_secs: f64,
}

/// The ACKs of leases in a record, by time. An ACK for longer than the lease is cut: it would hide others.
pub fn of(seen: &[Seen], lease_secs: u32) -> Vec<Promise> {
    let acks = seen
        .iter()
        .filter(|seen| seen.kind == "ACK" && seen.lease_secs > 0 && !seen.yiaddr.is_unspecified());
    let mut promises: Vec<Promise> = acks
        .map(|seen| Promise {
            mac: seen.mac.clone(),
            address: seen.yiaddr,
            from_secs: seen.at_secs,
            until_secs: seen.at_secs + f64::from(seen.lease_secs.min(lease_secs)),
        })
        .collect();
    promises.sort_by(|a, b| a.from_secs.total_cmp(&b.from_secs));
    promises
}

/// When each client got its first ACK, by time.
pub fn first_of_each(promises: &[Promise]) -> Vec<f64> {
    let mut known = BTreeSet::new();
    promises
        .iter()
        .filter(|promise| known.insert(&promise.mac))
        .map(|promise| promise.from_secs)
        .collect()
}

/// Addresses promised to a client while another's promise of them ran.
pub fn duplicates(promises: &[Promise]) -> Vec<String> {
    // Per address, until when whom.
    let mut holders: BTreeMap<Ipv4Addr, (&str, f64)> = BTreeMap::new();
    let mut found = Vec::new();
    for promise in promises {
        let holder = holders
            .entry(promise.address)
            .or_insert((&promise.mac, promise.until_secs));
        if holder.0 != promise.mac && holder.1 > promise.from_secs {
            found.push(format!(
                "{} to {} {:.1} s before {}'s end",
                promise.address,
                promise.mac,
                holder.1 - promise.from_secs,
                holder.0
            ));
        }
        *holder = if holder.0 == promise.mac {
            (holder.0, holder.1.max(promise.until_secs))
        } else {
            (&promise.mac, promise.until_secs)
        };
    }
    found
}

/// Promises that still run at `now_secs` and that the region does not know, or not for as long.
pub fn forgotten(
    promises: &[Promise],
    rows: &BTreeMap<Ipv4Addr, Row>,
    now_secs: f64,
) -> Vec<String> {
    // Only a client's longest promise of an address counts.
    let mut held: BTreeMap<(Ipv4Addr, &str), f64> = BTreeMap::new();
    for promise in promises.iter().filter(|one| one.until_secs > now_secs) {
        let until = held.entry((promise.address, &promise.mac)).or_insert(0.0);
        *until = until.max(promise.until_secs);
    }
    held.iter()
        .filter_map(|((address, mac), until)| match rows.get(address) {
            None => Some(format!("{address} of {mac} has no row")),
            Some(row) if row.mac != *mac => {
                Some(format!("{address} of {mac} is {}'s in the region", row.mac))
            }
            Some(row) if row.ends_secs < *until => Some(format!(
                "{address} of {mac} ends {:.1} s early in the region",
                until - row.ends_secs
            )),
            Some(_) => None,
        })
        .collect()
}

/// NAKs to clients that held a promise.
pub fn refusals(seen: &[Seen]) -> Vec<String> {
    let mut held: BTreeMap<&str, f64> = BTreeMap::new();
    let mut order: Vec<&Seen> = seen.iter().collect();
    order.sort_by(|a, b| a.at_secs.total_cmp(&b.at_secs));
    let mut found = BTreeSet::new();
    for message in order {
        match message.kind.as_str() {
            "ACK" => {
                let until = message.at_secs + f64::from(message.lease_secs);
                held.insert(&message.mac, until);
            }
            "NAK"
                if held
                    .get(message.mac.as_str())
                    .is_some_and(|end| *end > message.at_secs) =>
            {
                found.insert(message.mac.clone());
            }
            _ => {}
        }
    }
    found.into_iter().collect()
}

/// The longest time without any of `times` (sorted) from `from` to `to`.
pub fn longest_silence(from: f64, times: &[f64], to: f64) -> f64 {
    let starts = std::iter::once(from).chain(times.iter().copied());
    let ends = times.iter().copied().chain([to]);
    starts
        .zip(ends)
        .map(|(start, end)| end - start)
        .fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 99, 16, 1);

    fn promise(mac: &str, from: f64, secs: f64) -> Promise {
        Promise {
            mac: mac.into(),
            address: A,
            from_secs: from,
            until_secs: from + secs,
        }
    }

    #[test]
    fn an_address_has_one_holder_at_a_time() {
        let cases: [(&[Promise], usize); 6] = [
            (&[promise("a", 0.0, 30.0), promise("a", 10.0, 30.0)], 0),
            (&[promise("a", 0.0, 30.0), promise("b", 30.0, 30.0)], 0),
            (&[promise("a", 0.0, 30.0), promise("b", 29.0, 30.0)], 1),
            // A short renewal does not shorten what was promised before.
            (
                &[
                    promise("a", 0.0, 30.0),
                    promise("a", 5.0, 10.0),
                    promise("b", 20.0, 30.0),
                ],
                1,
            ),
            (
                &[
                    promise("a", 0.0, 30.0),
                    promise("b", 40.0, 30.0),
                    promise("a", 45.0, 30.0),
                ],
                1,
            ),
            (&[], 0),
        ];
        for (promises, want) in cases {
            assert_eq!(duplicates(promises).len(), want, "{promises:?}");
        }
    }

    #[test]
    fn a_promise_is_forgotten_without_a_row_that_outlasts_it() {
        let promises = [promise("a", 0.0, 30.0), promise("a", 10.0, 20.0)];
        let row = |mac: &str, ends_secs| {
            BTreeMap::from([(
                A,
                Row {
                    mac: mac.into(),
                    ends_secs,
                },
            )])
        };
        let cases = [
            (BTreeMap::new(), 15.0, 1),
            (row("a", 60.0), 15.0, 0),
            (row("b", 60.0), 15.0, 1),
            (row("a", 29.0), 15.0, 1),
            // It has run out.
            (BTreeMap::new(), 31.0, 0),
        ];
        for (rows, now, want) in cases {
            assert_eq!(
                forgotten(&promises, &rows, now).len(),
                want,
                "{rows:?} at {now}"
            );
        }
    }

    fn seen(kind: &str, mac: &str, at_secs: f64) -> Seen {
        Seen {
            at_secs,
            kind: kind.into(),
            mac: mac.into(),
            source: Ipv4Addr::UNSPECIFIED,
            target: Ipv4Addr::BROADCAST,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: if kind == "ACK" {
                A
            } else {
                Ipv4Addr::UNSPECIFIED
            },
            giaddr: Ipv4Addr::UNSPECIFIED,
            requested: None,
            server: None,
            lease_secs: if kind == "ACK" { 30 } else { 0 },
            relay_info: String::new(),
        }
    }

    #[test]
    fn only_a_holder_is_refused() {
        let record = [
            seen("ACK", "a", 0.0),
            seen("NAK", "b", 1.0),
            seen("NAK", "a", 31.0),
        ];
        assert!(refusals(&record).is_empty());
        let record = [seen("ACK", "a", 0.0), seen("NAK", "a", 29.0)];
        assert_eq!(refusals(&record), ["a"]);
        assert_eq!(of(&record, 30).len(), 1, "a NAK promises nothing");
    }

    #[test]
    fn renewals_are_no_first_ack() {
        let promises = [
            promise("a", 1.0, 30.0),
            promise("b", 2.0, 30.0),
            promise("a", 3.0, 30.0),
        ];
        assert_eq!(first_of_each(&promises), [1.0, 2.0]);
    }

    #[test]
    fn silences_are_measured_to_both_ends() {
        let cases = [
            (&[1.0, 2.0][..], 8.0),
            (&[][..], 10.0),
            (&[9.0][..], 9.0),
            (&[4.0, 6.0][..], 4.0),
        ];
        for (times, want) in cases {
            assert_eq!(longest_silence(0.0, times, 10.0), want, "{times:?}");
        }
    }
}
