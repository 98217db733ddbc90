//! What must hold.
//!
//! A. No two clients hold one address, by the clients' own clocks. B. What an ACK promised is covered, for as long as it promised
//! and from the moment it left, by the region's row or by a fact on the disk of a rack. C. A reply answers a query.
//!
//! Both end where a RELEASE in the client's name was heard and nobody answers a probe for the address afterwards: a RELEASE may be
//! late, so the rack asks; a client that is off or cut off at that moment has given its address up, as far as anyone can know
//! (decisions/0013). What is ACKed to it after that is promised as ever.
//!
//! B is excused where what covered a promise was destroyed: a spool that was wiped or set back, a database that lost commits.
//! A never is: that is what quarantine and hold are for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use lease::region::{Time, client_of};

use crate::database::Database;
use crate::message::{Answer, Kind, Query, lease_client};
use crate::plan::{Plan, ms};
use crate::rack::Site;

/// By so much the database's clock may be set (protocols.md, Clocks).
const STEP_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
struct Hold {
    address: Ipv4Addr,
    until: Duration,
}

#[derive(Debug)]
pub(crate) struct Oracle {
    /// By client.
    holds: Vec<Option<Hold>>,
    /// (address, client) to the end of the longest promise, on the database's clock as it went when the ACK left.
    promises: BTreeMap<(Ipv4Addr, usize), Promise>,
    /// In whose names RELEASEs were heard, since the last ACK.
    released: BTreeSet<(Ipv4Addr, usize)>,
    /// A row may end so much earlier: the database's clock was set since.
    slack: Duration,
    /// After a database lost commits, promises are not followed until then.
    blind_until: Duration,
    /// Queries that were not answered: (rack, client, xid, kind).
    queries: BTreeMap<(usize, usize, u32, u8), u32>,
    /// Rows, facts or promises have changed.
    pub dirty: bool,
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    end: Time,
    until: Duration,
    vlan: usize,
}

impl Oracle {
    pub fn new(plan: &Plan) -> Self {
        Self {
            holds: vec![None; plan.clients_in_all()],
            promises: BTreeMap::new(),
            released: BTreeSet::new(),
            slack: ms(plan.step_ms).min(STEP_MAX) + ms(1),
            blind_until: Duration::ZERO,
            queries: BTreeMap::new(),
            dirty: false,
        }
    }

    // ---------------------------------------------------------------- A

    /// The client uses the address until then. Err: somebody else does, too.
    pub fn hold(
        &mut self,
        client: usize,
        address: Ipv4Addr,
        until: Duration,
        now: Duration,
    ) -> Result<(), String> {
        self.holds[client] = Some(Hold { address, until });
        let same = |hold: &Option<Hold>| {
            hold.is_some_and(|hold| hold.address == address && hold.until > now)
        };
        let other =
            (0..self.holds.len()).find(|other| *other != client && same(&self.holds[*other]));
        match other {
            Some(other) if until > now => Err(format!(
                "A: clients {other} and {client} both hold {address}"
            )),
            _ => Ok(()),
        }
    }

    pub fn let_go(&mut self, client: usize) {
        self.holds[client] = None;
    }

    // ---------------------------------------------------------------- B

    /// An ACK leaves.
    pub fn promised(&mut self, answer: &Answer, database: &Database, now: Duration) {
        let Some(lease) = answer.lease.filter(|_| answer.kind == Kind::Ack) else {
            return;
        };
        self.released.remove(&(answer.address, answer.client));
        if now < self.blind_until {
            return;
        }
        let (until, end) = (now + lease, database.time(now).plus(lease));
        let key = (answer.address, answer.client);
        let new = Promise {
            end,
            until,
            vlan: answer.vlan,
        };
        let promise = self.promises.entry(key).or_insert(new);
        promise.end = promise.end.max(end);
        promise.until = promise.until.max(until);
        self.dirty = true;
    }

    /// A RELEASE has reached a rack.
    pub fn released(&mut self, address: Ipv4Addr, client: usize) {
        self.released.insert((address, client));
    }

    /// Nobody answers for the address: who has lost it.
    pub fn gone(&mut self, address: Ipv4Addr) -> Vec<usize> {
        let gone: Vec<usize> = (self.released.iter())
            .filter(|(of, _)| *of == address)
            .map(|(_, client)| *client)
            .collect();
        for client in &gone {
            self.promises.remove(&(address, *client));
            if self.holds[*client].is_some_and(|hold| hold.address == address) {
                self.holds[*client] = None;
            }
        }
        gone
    }

    /// To be called after each step.
    pub fn look(&mut self, database: &Database, racks: &[Site], now: Duration) -> Option<String> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        self.promises.retain(|_, promise| promise.until > now);
        let slack = self.slack;
        self.promises
            .iter()
            .find(|(key, promise)| !is_covered(**key, **promise, slack, database, racks))
            .map(|((address, client), promise)| {
                format!(
                    "B: what client {client} was promised of {address} for {:?} more stands nowhere; the row: {:?}",
                    promise.until - now,
                    database.row(*address),
                )
            })
    }

    /// A spool is gone, or is what it was: what only a fact covered need not be covered any more.
    pub fn forgive(&mut self, database: &Database) {
        let slack = self.slack;
        self.promises
            .retain(|key, promise| is_covered(*key, *promise, slack, database, &[]));
    }

    /// The database has lost commits.
    pub fn forgive_all(&mut self, until: Duration) {
        self.promises.clear();
        self.blind_until = self.blind_until.max(until);
    }

    // ---------------------------------------------------------------- C

    pub fn asked(&mut self, rack: usize, query: &Query) {
        let key = (rack, query.client, query.xid, query.kind as u8);
        *self.queries.entry(key).or_default() += 1;
    }

    /// Err: nobody asked.
    pub fn replied(&mut self, answer: &Answer) -> Result<(), String> {
        let kinds: &[Kind] = match (answer.kind, answer.lease) {
            (Kind::Offer, _) => &[Kind::Discover],
            (Kind::Ack, None) => &[Kind::Inform],
            (Kind::Ack | Kind::Nak, _) => &[Kind::Request],
            _ => &[],
        };
        for kind in kinds {
            let key = (answer.rack, answer.client, answer.xid, *kind as u8);
            if let Some(open) = self.queries.get_mut(&key).filter(|open| **open > 0) {
                *open -= 1;
                return Ok(());
            }
        }
        Err(format!("C: nobody asked for {answer:?}"))
    }

    /// The rack's process has ended: it answers nothing of before.
    pub fn forget_queries(&mut self, rack: usize) {
        self.queries.retain(|(of, ..), _| *of != rack);
    }
}

fn is_covered(
    (address, client): (Ipv4Addr, usize),
    promise: Promise,
    slack: Duration,
    database: &Database,
    racks: &[Site],
) -> bool {
    let client = lease_client(client, promise.vlan);
    let in_row = database.row(address).is_some_and(|row| {
        row.client.as_ref() == Some(&client) && row.end.plus(slack) >= promise.end
    });
    in_row
        || racks.iter().flat_map(|site| site.disk.facts()).any(|fact| {
            fact.write.address == IpAddr::V4(address)
                && client_of(&fact.write.kind) == Some(&client)
        })
}
