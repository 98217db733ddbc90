//! Rack events into the event table: unknown types dropped, repeats left out, MACs turned into machines.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use model::{EventType, Mac};
use sqlx::PgPool;
use store::StoreError;
use store::event::NewEvent;
use time::OffsetDateTime;

use crate::counters::{Counters, count};
use crate::wire::RackEvent;

/// The same event of the same machine is stored once in this time: firmware asks for the same thing many times.
const REPEAT_AFTER: Duration = Duration::from_secs(10);
/// Remembered events of one connection; past it all are forgotten, which stores some repeats.
const REMEMBERED_MAX: usize = 8192;

/// What one rack reported a moment ago.
#[derive(Default)]
pub(crate) struct Recent {
    seen: HashMap<(EventType, Option<[u8; 6]>, String), Instant>,
}

/// An event of a known type.
pub(crate) struct Seen {
    kind: EventType,
    event: RackEvent,
}

impl Recent {
    /// The events that are worth storing.
    pub fn filter(
        &mut self,
        events: Vec<RackEvent>,
        now: Instant,
        counters: &Counters,
    ) -> Vec<Seen> {
        if self.seen.len() + events.len() > REMEMBERED_MAX {
            self.seen
                .retain(|_, at| now.duration_since(*at) < REPEAT_AFTER);
            if self.seen.len() + events.len() > REMEMBERED_MAX {
                self.seen.clear();
            }
        }
        let mut kept = Vec::with_capacity(events.len());
        for event in events {
            let Some(kind) = event.kind.parse::<EventType>().ok() else {
                count(&counters.events_unknown);
                continue;
            };
            let key = (kind, event.mac, event.detail.clone());
            if kind == EventType::DhcpTrace {
                // Asked for message by message, and only for so long.
                kept.push(Seen { kind, event });
                continue;
            }
            match self.seen.get(&key) {
                Some(at) if now.duration_since(*at) < REPEAT_AFTER => {
                    count(&counters.events_repeated);
                    continue;
                }
                _ => self.seen.insert(key, now),
            };
            kept.push(Seen { kind, event });
        }
        kept
    }
}

/// Stores them in one statement; says how many.
pub(crate) async fn store(
    pool: &PgPool,
    rack: &str,
    events: Vec<Seen>,
) -> Result<usize, StoreError> {
    if events.is_empty() {
        return Ok(0);
    }
    let mut macs: Vec<[u8; 6]> = events.iter().filter_map(|seen| seen.event.mac).collect();
    macs.sort_unstable();
    macs.dedup();
    let mut db = pool.acquire().await?;
    let machines: HashMap<[u8; 6], String> = store::feed::machines_of_macs(&mut db, &macs)
        .await?
        .into_iter()
        .collect();
    let learnt: Vec<(String, &'static str)> = events
        .iter()
        .filter(|seen| seen.kind == EventType::BootFile)
        .filter_map(|Seen { event, .. }| {
            let machine = machines.get(&event.mac?)?;
            Some((machine.clone(), firmware(&event.boot_method)?))
        })
        .collect();
    if !learnt.is_empty() {
        store::lifecycle::learn_boot_methods(&mut *db, &learnt).await?;
    }
    let now = OffsetDateTime::now_utc();
    let events: Vec<NewEvent> = events
        .into_iter()
        .map(|Seen { kind, event }| {
            let mut new = NewEvent::new(kind).rack(rack).at(now - event.ago);
            if let Some(mac) = event.mac {
                new = new.mac(Mac::new(mac));
                let machine = machines.get(&mac).and_then(|id| id.parse().ok());
                new.machine = machine;
            }
            new.text(
                match event.address.filter(|address| !address.is_unspecified()) {
                    Some(address) if event.detail.is_empty() => address.to_string(),
                    Some(address) => format!("{address} {}", event.detail),
                    None => event.detail,
                },
            )
        })
        .collect();
    store::event::record_all(&mut db, &events).await?;
    Ok(events.len())
}

/// MAAS's `bios_boot_method` for a boot method. `None`: a loader asked, which says nothing of the firmware under it.
fn firmware(boot_method: &str) -> Option<&'static str> {
    match boot_method {
        "pxe" => Some("pxe"),
        "powernv" | "open-firmware_ppc64el" => Some("powernv"),
        method if method.starts_with("uefi_") => Some("uefi"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_method_says_which_firmware_asked() {
        for (method, want) in [
            ("uefi_amd64_tftp", Some("uefi")),
            ("uefi_arm64_http", Some("uefi")),
            ("uefi_ebc_tftp", Some("uefi")),
            ("pxe", Some("pxe")),
            ("powernv", Some("powernv")),
            ("ipxe", None),
            ("onie", None),
            ("", None),
        ] {
            assert_eq!(firmware(method), want, "{method}");
        }
    }

    fn event(kind: &str, mac: u8) -> RackEvent {
        let (ago, detail) = (Duration::ZERO, "x".into());
        RackEvent {
            kind: kind.into(),
            mac: Some([mac; 6]),
            address: None,
            ago,
            detail,
            boot_method: String::new(),
        }
    }

    #[test]
    fn repeats_are_left_out_for_a_while_and_unknown_types_always() {
        let (mut recent, counters, start) =
            (Recent::default(), Counters::default(), Instant::now());
        let mut kept = |at: u64, events: Vec<RackEvent>| {
            recent
                .filter(events, start + Duration::from_secs(at), &counters)
                .len()
        };
        assert_eq!(kept(0, vec![event("DHCP_ACK", 1), event("DHCP_ACK", 1)]), 1);
        assert_eq!(kept(1, vec![event("DHCP_ACK", 1), event("DHCP_ACK", 2)]), 1);
        assert_eq!(kept(2, vec![event("BOOT_FILE", 1), event("NO_SUCH", 1)]), 1);
        assert_eq!(kept(11, vec![event("DHCP_ACK", 1)]), 1);
        let read: HashMap<_, _> = counters
            .read()
            .into_iter()
            .map(|(name, _, value)| (name, value))
            .collect();
        assert_eq!((read["events_repeated"], read["events_unknown"]), (2, 1));
    }
}
