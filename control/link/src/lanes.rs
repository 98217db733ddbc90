//! Kinds of calls of racks, each with its own part of the link's database connections.
//!
//! What a machine that nobody knows can cause (look-ups of boot configs, events) and what reads much (an attach) never
//! takes the connections that leases and heartbeats need, and no rack takes all of a kind.

use std::sync::Arc;
use std::time::Duration;

use capnp::Error;
use gate::{Bounds, Place, Room, Source};

use crate::counters::{Counters, count};

/// Longest wait for a turn; then the rack is told that the region is busy.
const WAIT: Duration = Duration::from_secs(5);
/// An attach may wait for those of other racks.
const ATTACH_WAIT: Duration = Duration::from_secs(30);

pub(crate) struct Lanes {
    /// Grants, and with them every other call that a rack's work waits for.
    pub leases: Lane,
    pub attaches: Lane,
    pub boots: Lane,
    pub reports: Lane,
}

pub(crate) struct Lane {
    room: Arc<Room>,
    wait: Duration,
}

impl Lanes {
    /// For so many database connections. Together less than all: heartbeats and hellos are in no lane.
    pub fn new(connections: u32) -> Self {
        let lane = |name, part: u32, wait| {
            let total = u64::from((connections * part / 16).max(1));
            let each = total.div_ceil(2);
            let open = total;
            Lane {
                room: Room::new(name, Bounds { total, open, each }),
                wait,
            }
        };
        Self {
            leases: lane("link_calls_leases", 6, WAIT),
            attaches: lane("link_calls_attach", 3, ATTACH_WAIT),
            boots: lane("link_calls_boot", 3, WAIT),
            reports: lane("link_calls_report", 2, WAIT),
        }
    }

    pub fn numbers(&self) -> Vec<gate::Numbers> {
        [&self.leases, &self.attaches, &self.boots, &self.reports]
            .map(|lane| lane.room.numbers())
            .into()
    }
}

impl Lane {
    /// A turn of the rack; `overloaded` when none came in time.
    pub async fn turn(&self, rack: &str, counters: &Counters) -> Result<Place, Error> {
        let turn = self.room.wait(Source::Rack(rack.into()), 1, self.wait);
        turn.await.map_err(|_| {
            count(&counters.calls_overloaded);
            Error::overloaded("too many calls of this kind under way".into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn boot_calls_of_one_rack_leave_room_for_others_and_for_leases() {
        let (lanes, counters) = (Lanes::new(16), Counters::default());
        let mut held = Vec::new();
        while let Ok(place) = lanes.boots.turn("flooded", &counters).await {
            held.push(place);
        }
        assert_eq!(held.len(), 2);
        assert!(lanes.boots.turn("other", &counters).await.is_ok());
        assert!(lanes.leases.turn("flooded", &counters).await.is_ok());
        held.clear();
        assert!(lanes.boots.turn("flooded", &counters).await.is_ok());
        let total: u64 = lanes.numbers().iter().map(|room| room.total).sum();
        assert!(total < 16, "{total}");
    }
}
