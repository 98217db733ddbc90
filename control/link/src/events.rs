//! Rack events into the event table: unknown types dropped, repeats left out, MACs turned into machines.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use gate::{Buckets, Rate};
use model::{EventType, Mac};
use sqlx::PgPool;
use store::StoreError;
use store::event::NewEvent;
use time::OffsetDateTime;

use crate::counters::{Counters, add, count};
use crate::racks::Racks;
use crate::wire::RackEvent;

/// The same event of the same machine is stored once in this time: firmware asks for the same thing many times.
const REPEAT_AFTER: Duration = Duration::from_secs(10);
/// Remembered events of one connection; past it the oldest is forgotten, which stores some repeats.
const REMEMBERED_MAX: usize = 8192;

/// What one rack reported a moment ago. The text of an event is kept as a hash.
pub(crate) struct Recent {
    hasher: RandomState,
    seen: gate::Recent<Key, Option<Instant>>,
}

/// Kind, MAC, and the text's hash.
type Key = (EventType, Option<[u8; 6]>, u64);

impl Default for Recent {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            seen: gate::Recent::new(REMEMBERED_MAX),
        }
    }
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
        let mut kept = Vec::with_capacity(events.len());
        for event in events {
            let Some(kind) = event.kind.parse::<EventType>().ok() else {
                count(&counters.events_unknown);
                continue;
            };
            // A trace is asked for message by message, and only for so long.
            if kind != EventType::DhcpTrace {
                let key = (kind, event.mac, self.hasher.hash_one(&event.detail));
                let last = self.seen.touch(&key, || None);
                if last.is_some_and(|at| now.duration_since(at) < REPEAT_AFTER) {
                    count(&counters.events_repeated);
                    continue;
                }
                *last = Some(now);
            }
            kept.push(Seen { kind, event });
        }
        kept
    }
}

/// What each rack may tell, whatever connection it tells it on: of strangers, of each machine that it serves, and of
/// what an operator traces. A rack that lies or floods uses up its own.
pub(crate) struct Intake {
    strangers: Buckets<String>,
    machines: Buckets<(String, String)>,
    traces: Buckets<String>,
}

/// A boot is some ten events; one of strangers that enlist by the rack is a few hundred.
const OF_STRANGERS: Rate = Rate {
    burst: 2000,
    every: Duration::from_millis(50),
};
const OF_MACHINE: Rate = Rate {
    burst: 200,
    every: Duration::from_millis(500),
};
const OF_TRACES: Rate = Rate {
    burst: 4000,
    every: Duration::from_millis(5),
};
/// Racks, and machines of them, whose events are counted.
const RACKS_MAX: usize = 1024;
const MACHINES_MAX: usize = 64 << 10;

impl Default for Intake {
    fn default() -> Self {
        Self {
            strangers: Buckets::new(OF_STRANGERS, RACKS_MAX),
            machines: Buckets::new(OF_MACHINE, MACHINES_MAX),
            traces: Buckets::new(OF_TRACES, RACKS_MAX),
        }
    }
}

impl Intake {
    fn takes(&mut self, rack: &str, kind: EventType, machine: Option<&str>, now: Instant) -> bool {
        match machine {
            _ if kind == EventType::DhcpTrace => self.traces.take(&rack.to_owned(), now),
            Some(machine) => self
                .machines
                .take(&(rack.to_owned(), machine.to_owned()), now),
            None => self.strangers.take(&rack.to_owned(), now),
        }
    }
}

/// Stores them in one statement; says how many.
pub(crate) async fn store(
    pool: &PgPool,
    rack: &str,
    events: Vec<Seen>,
    racks: &Racks,
) -> Result<usize, StoreError> {
    if events.is_empty() {
        return Ok(0);
    }
    let mut macs: Vec<[u8; 6]> = events.iter().filter_map(|seen| seen.event.mac).collect();
    macs.sort_unstable();
    macs.dedup();
    let mut db = pool.acquire().await?;
    // Of a machine that boots elsewhere a rack knows nothing: such an event is a stranger's.
    let machines: HashMap<[u8; 6], String> = store::feed::machines_served(&mut db, &macs, rack)
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
    let told = events.len();
    let events: Vec<Seen> = {
        let (mut intake, now) = (racks.intake(), Instant::now());
        let takes = |seen: &Seen| {
            let machine = seen.event.mac.and_then(|mac| machines.get(&mac));
            intake.takes(rack, seen.kind, machine.map(String::as_str), now)
        };
        events.into_iter().filter(takes).collect()
    };
    add(&racks.counters().events_limited, told - events.len());
    if events.is_empty() {
        return Ok(0);
    }
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

    #[test]
    fn a_rack_that_floods_uses_up_its_own_share_of_events() {
        let (mut intake, now) = (Intake::default(), Instant::now());
        let kind = EventType::BootUnknown;
        let mut taken = 0;
        for _ in 0..100_000 {
            taken += u32::from(intake.takes("liar", kind, None, now));
        }
        assert_eq!(taken, OF_STRANGERS.burst);
        // Neither another rack's strangers, nor machines that this one serves, nor a trace wait for it.
        assert!(intake.takes("other", kind, None, now));
        assert!(intake.takes("liar", EventType::BootFile, Some("abc123"), now));
        assert!(intake.takes("liar", EventType::DhcpTrace, None, now));
        // A machine has a share of its own, for each rack.
        let mut of_machine = 0;
        for _ in 0..1000 {
            of_machine += u32::from(intake.takes("liar", kind, Some("flood1"), now));
        }
        assert_eq!(of_machine, OF_MACHINE.burst);
        assert!(intake.takes("other", kind, Some("flood1"), now));
        assert!(intake.takes("liar", kind, None, now + Duration::from_secs(1)));
    }

    #[test]
    fn a_flood_of_texts_stays_within_the_memory() {
        let (mut recent, counters) = (Recent::default(), Counters::default());
        for number in 0..3 * REMEMBERED_MAX {
            let mut event = event("BOOT_FILE", 1);
            event.detail = number.to_string();
            recent.filter(vec![event], Instant::now(), &counters);
        }
        assert_eq!(recent.seen.len(), REMEMBERED_MAX);
    }
}
