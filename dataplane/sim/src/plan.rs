//! What there is in a run and what may go wrong in it. A plan is numbers only, so that it can be kept as a line of text.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use lease::BlockId;
use lease::guards::{Guard, Guards};

use crate::rng::Rng;

macro_rules! plan {
    ($($(#[$doc:meta])* $field:ident = $default:expr;)*) => {
        /// See the module. Times are in milliseconds, chances in thousandths, faults in weights (0: does not happen).
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Plan {
            $($(#[$doc])* pub $field: u64,)*
            /// Not part of the text.
            pub guards: Guards,
        }

        impl Default for Plan {
            fn default() -> Self {
                Self { $($field: $default,)* guards: Guards::ALL }
            }
        }

        /// What differs from the default, as `name=number`.
        impl fmt::Display for Plan {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut between = "";
                $(if self.$field != $default {
                    write!(f, "{between}{}={}", stringify!($field), self.$field)?;
                    between = " ";
                })*
                if between.is_empty() { f.write_str("default") } else { Ok(()) }
            }
        }

        impl FromStr for Plan {
            type Err = PlanError;

            fn from_str(text: &str) -> Result<Self, PlanError> {
                let mut plan = Self::default();
                for word in text.split_whitespace().filter(|word| *word != "default") {
                    let bad = || PlanError { word: word.to_owned() };
                    let (name, number) = word.split_once('=').ok_or_else(bad)?;
                    let number = number.parse().map_err(|_| bad())?;
                    match name {
                        $(stringify!($field) => plan.$field = number,)*
                        _ => return Err(bad()),
                    }
                }
                Ok(plan)
            }
        }
    };
}

/// A word of a plan's text that is none.
#[derive(Debug, PartialEq, Eq)]
pub struct PlanError {
    pub word: String,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a part of a plan", self.word)
    }
}

impl std::error::Error for PlanError {}

plan! {
    /// Clients on the racks' own VLAN, and behind the relay.
    clients = 3;
    relayed = 0;
    racks = 2;
    shards = 1;
    /// Addresses of a block, and blocks of each VLAN for each rack (a lone rack has all).
    addresses = 2;
    blocks = 1;
    /// 0: the shards are real DHCP engines. 1: they ask for anything at any time, so that only the lease protocol's own rules
    /// stand between two clients and one address.
    naive = 0;
    /// 1: the engines ask for addresses by ARP, and clients that are on answer.
    probe = 0;
    lease_ms = 60_000;
    /// How far a heartbeat moves `until`. The product's is a day.
    until_ms = 600_000;
    /// For so long there are faults. What comes behind is the recovery.
    length_ms = 3_600_000;

    /// A client does something else than renewing about this often.
    whim_ms = 120_000;
    /// The first retransmission. RFC 2131 §4.1 says 4 s.
    retry_ms = 4_000;
    /// Clients that count a lease from the ACK's arrival.
    sloppy = 300;
    /// Clients that come back to an address whose lease is over (§3.2 would have them begin anew).
    stale = 300;
    /// Acknowledged addresses that somebody else turns out to use.
    decline = 20;
    /// Clients' clocks are wrong by at most this much (parts per million).
    client_drift_ppm = 200;

    /// Between clients and racks, each way: lost, doubled, late (by up to `slow_ms`).
    loss = 20;
    double = 20;
    slow = 30;
    slow_ms = 8_000;

    /// Of the requests to a region: lost with their answer still awaited, run twice, run late (by up to `late_ms`). Also answers
    /// are lost and late so.
    link_loss = 5;
    link_double = 5;
    late = 10;
    late_ms = 120_000;
    /// The same for batches alone: a lock that is waited for.
    late_batch = 0;
    /// A transaction waits this long for its locks, at most; its `now()` is of before.
    lock_ms = 200;
    /// An fsync takes up to this.
    fsync_ms = 30;
    /// Messages between shards and link thread that come late, by up to `mail_ms`.
    mail = 5;
    mail_ms = 3_000;

    /// A fault about this often, of a kind drawn by weight; those that last do so for up to `fault_ms`.
    fault_every_ms = 120_000;
    fault_ms = 120_000;
    crash = 4;
    /// A crash that loses the spool, or finds an older one.
    wipe = 1;
    set_back = 1;
    /// 1: also to snapshots that no region can tell from what was there.
    any_snapshot = 0;
    pause_rack = 2;
    pause_region = 2;
    /// A pause, and soon after it a cut from both regions: as a host does whose switch restarts.
    lapse = 1;
    crash_region = 2;
    /// One rack from one region; from both; from the clients.
    cut = 2;
    cut_all = 4;
    isolate = 1;
    /// A rack's two clocks disagree.
    doubt = 1;
    drift = 2;
    /// Racks' clocks are wrong by at most this much.
    drift_ppm = 10_000;
    step = 1;
    /// The database's clock is between right and this much ahead.
    step_ms = 29_000;
    /// A standby becomes the database, with all commits or without the last.
    promote = 0;
    promote_lossy = 0;
    /// How far behind the standby is, at most.
    standby_ms = 60_000;
    /// 0: no wait after a promotion (protocols.md, Durable). The product always waits.
    hold = 1;
    /// A block is meant for another rack; a rack yields one.
    intend = 2;
    give = 1;
    /// Requests of any time before run again.
    replay = 1;
    /// What the feed says of a peer's life is not so.
    lies = 20;
    /// The spool's disk fails for a while.
    disk = 1;
    relay_down = 1;
}

impl Plan {
    /// The same without these rules.
    pub fn without(&self, guards: &[Guard]) -> Self {
        Self {
            guards: Guards::without(guards),
            ..self.clone()
        }
    }

    /// A plan drawn by the seed: another instance and another mix of faults each time, for what always happens together
    /// hides what would happen alone.
    pub fn swarm(seed: u64) -> Self {
        let rng = &mut Rng::new(seed ^ 0x0073_7761_726d);
        let mut plan = Self {
            clients: 1 + rng.below(5),
            relayed: if rng.permille(400) {
                1 + rng.below(3)
            } else {
                0
            },
            racks: 1 + u64::from(rng.permille(750)),
            shards: 1 + u64::from(rng.permille(300)),
            addresses: rng.pick(&[1, 1, 2, 3, 6]),
            blocks: rng.pick(&[1, 1, 2]),
            naive: u64::from(rng.permille(350)),
            lease_ms: rng.pick(&[30_000, 60_000, 60_000, 120_000, 600_000]),
            length_ms: rng.pick(&[600_000, 1_800_000, 3_600_000]),
            whim_ms: rng.pick(&[20_000, 60_000, 300_000]),
            sloppy: rng.pick(&[0, 300, 1_000]),
            stale: rng.pick(&[0, 300, 1_000]),
            fault_every_ms: rng.pick(&[15_000, 60_000, 240_000]),
            fault_ms: rng.pick(&[3_000, 30_000, 300_000]),
            ..Self::default()
        };
        plan.until_ms = rng.pick(&[120_000, 300_000, 900_000, 86_400_000]);
        plan.until_ms = plan.until_ms.max(plan.lease_ms);
        if plan.naive == 1 {
            plan.shards = 1;
        }
        plan.promote = u64::from(plan.until_ms < 900_000 && rng.permille(150));
        plan.promote_lossy = u64::from(plan.until_ms < 900_000 && rng.permille(150));
        for chance in [
            &mut plan.loss,
            &mut plan.double,
            &mut plan.slow,
            &mut plan.link_loss,
            &mut plan.link_double,
            &mut plan.late,
            &mut plan.mail,
            &mut plan.lies,
            &mut plan.decline,
        ] {
            *chance *= rng.pick(&[0, 1, 1, 4]);
        }
        for weight in plan.weights_mut() {
            *weight *= rng.pick(&[0, 0, 1, 4]);
        }
        plan.probe = u64::from(rng.coin());
        plan
    }

    fn weights_mut(&mut self) -> [&mut u64; 17] {
        [
            &mut self.crash,
            &mut self.wipe,
            &mut self.set_back,
            &mut self.pause_rack,
            &mut self.pause_region,
            &mut self.lapse,
            &mut self.crash_region,
            &mut self.cut,
            &mut self.cut_all,
            &mut self.isolate,
            &mut self.doubt,
            &mut self.drift,
            &mut self.step,
            &mut self.intend,
            &mut self.give,
            &mut self.replay,
            &mut self.disk,
        ]
    }

    /// Nothing goes wrong but what is switched on afterwards.
    pub fn calm() -> Self {
        let mut plan = Self {
            loss: 0,
            double: 0,
            slow: 0,
            link_loss: 0,
            link_double: 0,
            late: 0,
            mail: 0,
            decline: 0,
            drift_ppm: 0,
            step_ms: 0,
            relay_down: 0,
            ..Self::default()
        };
        plan.weights_mut()
            .into_iter()
            .for_each(|weight| *weight = 0);
        plan
    }

    // ---------------------------------------------------------------- the instance

    pub(crate) fn vlans(&self) -> usize {
        1 + usize::from(self.relayed > 0)
    }

    pub(crate) fn clients_in_all(&self) -> usize {
        (self.clients + self.relayed) as usize
    }

    pub(crate) fn lease(&self) -> Duration {
        ms(self.lease_ms)
    }

    pub(crate) fn until(&self) -> Duration {
        ms(self.until_ms)
    }

    /// The wait after a promotion: every rack's `until` has passed then.
    pub(crate) fn hold(&self) -> Duration {
        self.until() + lease::TAKE_AWAY_GRACE
    }

    pub(crate) fn geometry(&self) -> impl Iterator<Item = Place> {
        let (racks, addresses) = (self.racks as usize, self.addresses as u32);
        let per_vlan = self.blocks as usize * racks;
        let all = (0..self.vlans()).flat_map(move |vlan| (0..per_vlan).map(move |n| (vlan, n)));
        all.enumerate().map(move |(index, (vlan, n))| Place {
            id: BlockId(index as u64 + 1),
            vlan,
            first: address(vlan, FIRST_ADDRESS + n as u32 * addresses),
            count: addresses,
            rack: n % racks,
        })
    }
}

/// A block as it is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub id: BlockId,
    pub vlan: usize,
    pub first: Ipv4Addr,
    pub count: u32,
    /// For which rack.
    pub rack: usize,
}

/// Below are the racks, above the relay.
const FIRST_ADDRESS: u32 = 10;

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn vlan_id(vlan: usize) -> lease::VlanId {
    vlan as u32 + 1
}

pub(crate) fn address(vlan: usize, last: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 | (vlan as u32) << 16 | last)
}

pub(crate) fn server_of(rack: usize) -> Ipv4Addr {
    address(0, 1 + rack as u32)
}

pub(crate) fn relay_of(vlan: usize) -> Ipv4Addr {
    address(vlan, 254)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_its_text() {
        for seed in 0..200 {
            let plan = Plan::swarm(seed);
            assert_eq!(plan.to_string().parse(), Ok(plan));
        }
        assert_eq!("default".parse(), Ok(Plan::default()));
        let unknown = "clients=2 gremlins=1".parse::<Plan>();
        assert_eq!(unknown.unwrap_err().word, "gremlins=1");
    }
}
