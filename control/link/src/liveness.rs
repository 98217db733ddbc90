//! Which racks this process hears, for the racks that share a VLAN with them: written down for all processes, which conclude
//! together (`store::lease::liveness`). A belief decides who answers a client, never who may hold an address.
//!
//! A rack is heard while one of its links is open, answers pings, and has attached (over any link: one that is believed alive
//! already is taken at its hello). A closed link is noticed at once; silence after a ping of [`SILENT_AFTER`].

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use store::StoreError;
use store::lease::liveness as table;
use tokio::sync::Notify;

use crate::listener::Region;

/// How often this process renews what it hears. Well below `table::STALE_AFTER`.
const PASS_EVERY: Duration = Duration::from_secs(1);
/// Where no racks share a VLAN, this often is looked whether some do.
const IDLE_EVERY: Duration = Duration::from_secs(5);
/// A rack whose peers depend on it and which leaves a ping without answer for this long is not heard.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(3);
/// Racks find their way to a process that has just started within this time; before, it declares none dead.
const ARRIVAL: Duration = Duration::from_secs(5);

struct Linked {
    rack: String,
    attached: bool,
    silent: bool,
}

/// The open links of this process; stays on the link thread.
#[derive(Default)]
pub(crate) struct Liveness {
    /// By connection. Bounded by the connections there are.
    links: RefCell<HashMap<u64, Linked>>,
    sharing: RefCell<BTreeSet<String>>,
    changed: Notify,
}

impl Liveness {
    pub fn opened(&self, connection: u64, rack: &str) {
        let linked = Linked {
            rack: rack.to_owned(),
            attached: false,
            silent: false,
        };
        self.links.borrow_mut().insert(connection, linked);
        self.changed.notify_one();
    }

    pub fn closed(&self, connection: u64) {
        if self.links.borrow_mut().remove(&connection).is_some() {
            self.changed.notify_one();
        }
    }

    /// The rack serves: it has attached, or its heartbeat was right.
    pub fn attached(&self, connection: u64) {
        self.change(connection, |linked| &mut linked.attached, true);
    }

    pub fn silent(&self, connection: u64, silent: bool) {
        self.change(connection, |linked| &mut linked.silent, silent);
    }

    fn change(&self, connection: u64, field: impl Fn(&mut Linked) -> &mut bool, to: bool) {
        let mut links = self.links.borrow_mut();
        let Some(field) = links.get_mut(&connection).map(field) else {
            return;
        };
        if *field != to {
            *field = to;
            self.changed.notify_one();
        }
    }

    /// Whether another rack is to take over when this one is silent.
    pub fn is_sharing(&self, rack: &str) -> bool {
        self.sharing.borrow().contains(rack)
    }

    /// Of the racks that share VLANs, those heard here.
    fn heard(&self, believed: &[String]) -> Vec<String> {
        let (links, sharing) = (self.links.borrow(), self.sharing.borrow());
        let is_heard = |linked: &&Linked| {
            !linked.silent
                && (linked.attached || believed.contains(&linked.rack))
                && sharing.contains(&linked.rack)
        };
        let heard: BTreeSet<&String> = links
            .values()
            .filter(is_heard)
            .map(|linked| &linked.rack)
            .collect();
        heard.into_iter().cloned().collect()
    }

    /// Without links nobody is heard.
    fn is_idle(&self) -> bool {
        self.sharing.borrow().is_empty()
    }
}

/// Until the region ends.
pub(crate) async fn run(region: Rc<Region>) {
    let started = Instant::now();
    // Something of an earlier pass stands in the table.
    let mut wrote = false;
    loop {
        if let Err(error) = pass(&region, started.elapsed() >= ARRIVAL, &mut wrote).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "telling which racks are alive"
            );
        }
        let pause = if region.liveness.is_idle() {
            IDLE_EVERY
        } else {
            PASS_EVERY
        };
        tokio::select! {
            () = region.cancel.cancelled() => return,
            () = region.liveness.changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn pass(region: &Region, may_bury: bool, wrote: &mut bool) -> Result<(), StoreError> {
    let liveness = &region.liveness;
    let mut tx = region.pool.begin().await?;
    let sharing = table::sharing_racks(&mut tx).await?;
    if sharing.is_empty() && !*wrote {
        liveness.sharing.borrow_mut().clear();
        return Ok(());
    }
    let believed = table::believed(&mut tx, &sharing).await?;
    *liveness.sharing.borrow_mut() = sharing.into_iter().collect();
    // Lost in a crash of the database, it is written again a second later.
    table::not_durably(&mut tx).await?;
    table::heard(&mut tx, region.process.id, &liveness.heard(&believed)).await?;
    let changed = table::conclude(&mut tx, may_bury).await?;
    tx.commit().await?;
    *wrote = !liveness.is_idle();
    for (rack, alive) in changed {
        match alive {
            true => tracing::info!(rack, "the rack serves: its peers are told"),
            false => tracing::warn!(rack, "the rack is not heard: its peers are told"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rack_is_heard_over_any_link_that_is_open_answers_and_has_attached() {
        let liveness = Liveness::default();
        *liveness.sharing.borrow_mut() = ["a", "b"].map(str::to_owned).into();
        let heard = |believed: &[&str]| {
            let believed: Vec<String> = believed.iter().map(|rack| (*rack).into()).collect();
            liveness.heard(&believed).join(" ")
        };
        for (connection, rack) in [(1, "a"), (2, "a"), (3, "b"), (4, "c")] {
            liveness.opened(connection, rack);
        }
        assert_eq!(heard(&[]), "", "nobody has attached");
        assert_eq!(
            heard(&["b", "c"]),
            "b",
            "it attached elsewhere; c shares nothing"
        );
        liveness.attached(1);
        liveness.attached(4);
        assert_eq!(heard(&[]), "a");
        liveness.silent(1, true);
        assert_eq!(heard(&[]), "");
        liveness.attached(2);
        assert_eq!(heard(&[]), "a", "over its other link");
        liveness.closed(2);
        assert_eq!(heard(&["a"]), "", "the one that is left is silent");
        liveness.silent(1, false);
        assert_eq!(heard(&[]), "a");
        liveness.closed(1);
        liveness.attached(1);
        assert_eq!(heard(&["a"]), "", "gone is gone");
        assert!(liveness.is_sharing("a") && !liveness.is_sharing("c"));
    }
}
