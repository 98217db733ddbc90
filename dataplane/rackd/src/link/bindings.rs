//! Keeps the map of which MAC holds which address now, for [`crate::attest`]. Bounded by the addresses of the rack's
//! blocks, and those of its peers' blocks whose bindings it has extended since it attached.

use std::net::IpAddr;
use std::sync::{PoisonError, RwLockWriteGuard};
use std::time::{Duration, Instant};

use lease::{Client, ClientKey, Row, VlanId};

use crate::attest::{Binding, Bindings};

type Map = std::collections::HashMap<IpAddr, Binding>;

/// What an attach told, instead of what was known. `sent`: when its request left, from which the rows count.
pub(super) fn replace(bindings: &Bindings, rows: &[Row], sent: Instant) {
    let bound = rows.iter().filter_map(|row| {
        let (mac, vlan) = mac_of(row.client.as_ref()?)?;
        let left = Duration::from_millis(u64::try_from(row.remaining_ms).ok()?);
        Some((
            row.address,
            Binding {
                mac,
                vlan,
                end: sent.checked_add(left)?,
            },
        ))
    });
    *write(bindings) = bound.collect();
}

pub(super) fn granted(bindings: &Bindings, address: IpAddr, client: &Client, end: Instant) {
    let mut map = write(bindings);
    match mac_of(client) {
        // No write shortens an end; another client's binding is over.
        Some((mac, vlan)) => {
            let binding = map.entry(address).or_insert(Binding { mac, vlan, end });
            let end = if binding.mac == mac {
                binding.end.max(end)
            } else {
                end
            };
            *binding = Binding { mac, vlan, end };
        }
        None => drop(map.remove(&address)),
    }
}

pub(super) fn remove(bindings: &Bindings, address: IpAddr) {
    write(bindings).remove(&address);
}

fn write(bindings: &Bindings) -> RwLockWriteGuard<'_, Map> {
    bindings.write().unwrap_or_else(PoisonError::into_inner)
}

fn mac_of(client: &Client) -> Option<([u8; 6], VlanId)> {
    match client.key {
        ClientKey::Mac(mac) => Some((mac, client.vlan)),
        ClientKey::ClientId(_) | ClientKey::DuidIaid(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use lease::BlockId;

    use super::*;

    #[test]
    fn bindings_follow_attach_grant_and_end() {
        let (bindings, now) = (Bindings::default(), Instant::now());
        let client = |n: u8| Client {
            vlan: 1,
            key: ClientKey::Mac([n; 6]),
        };
        let row = |last: u8, client: Option<Client>, remaining_ms: i64| Row {
            block: BlockId(1),
            address: IpAddr::from([10, 0, 0, last]),
            client,
            remaining_ms,
            quarantine: Duration::ZERO,
            released: false,
        };
        let rows = [
            row(1, Some(client(1)), 5_000),
            row(2, Some(client(2)), -1),
            row(3, None, 9_000),
        ];
        replace(&bindings, &rows, now);
        assert_eq!(bindings.read().unwrap().len(), 1);
        let one = IpAddr::from([10, 0, 0, 1]);
        let held = || bindings.read().unwrap().get(&one).map(|b| (b.mac, b.end));
        let (soon, later) = (now + Duration::from_secs(2), now + Duration::from_secs(5));
        assert_eq!(held(), Some(([1; 6], later)));
        granted(&bindings, one, &client(1), soon);
        assert_eq!(held(), Some(([1; 6], later)));
        granted(&bindings, one, &client(9), soon);
        assert_eq!(held(), Some(([9; 6], soon)));
        remove(&bindings, one);
        assert!(bindings.read().unwrap().is_empty());
    }
}
