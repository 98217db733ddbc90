//! Numbers of one shard for the rack's metrics. The shard counts in plain integers and publishes a copy once a second.

use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::DriverCounters;

/// What the shard itself counts; its engines have their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub turns: u64,
    /// How often the shard began anew, which set all its other counters back.
    pub restarts: u64,
    /// Frames that are no IPv4 UDP datagram of DHCP.
    pub dhcp_unreadable: u64,
    /// Messages from a device that is no link of ours and with no relay we know.
    pub dhcp_no_link: u64,
    /// Replies that found no send slot; the client asks again.
    pub dhcp_no_slot: u64,
    /// Replies to a link whose device is gone.
    pub dhcp_no_device: u64,
    /// Messages of clients that another shard owns: given to it, refused for want of room, and got from others.
    pub dhcp_handed_over: u64,
    pub dhcp_hand_overs_refused: u64,
    pub dhcp_taken_over: u64,
    /// Messages that waited for an address longer than they may, or found no place to wait in.
    pub dhcp_not_kept: u64,
    /// Addresses to be asked for that found the mailbox full.
    pub probes_lost: u64,
    /// Messages to the link and work threads that found the mailbox full.
    pub leases_refused: u64,
    pub events_lost: u64,
    /// Events of sources that have had their share.
    pub events_left_out: u64,
    pub wants_lost: u64,
    pub hand_offs_refused: u64,
    pub hand_offs: u64,
    /// Boot configs rendered, and of them from the region's answer to a call.
    pub boot_configs: u64,
    pub boot_configs_by_call: u64,
    /// Calls that got no answer in time, and requests refused because too many wait.
    pub boot_calls_unanswered: u64,
    pub boot_calls_refused: u64,
    /// TFTP requests from addresses in no subnet of ours.
    pub tftp_not_served: u64,
    /// Requests answered with 503 because every place, or its source's share of them, was taken.
    pub connections_refused: u64,
    /// Connections that went for another's sake: without a whole head, between requests, and being served.
    pub displaced_new: u64,
    pub displaced_idle: u64,
    pub displaced_busy: u64,
}

/// One shard's numbers at one time.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub shard: Counters,
    pub driver: DriverCounters,
    pub dhcp: dhcp::Counters,
    pub dhcp_usage: dhcp::Usage,
    /// Of each block, the addresses that some host answers for.
    pub dhcp_claimed: Vec<(lease::BlockId, u32)>,
    pub tftp: tftp::Counters,
    pub tftp_transfers: usize,
    pub tftp_unconfirmed: usize,
    pub tftp_pending: usize,
    pub http: images::Counters,
    pub http_connections: usize,
    /// Of them, without a whole head, between requests, and being served.
    pub http_new: usize,
    pub http_idle: usize,
    pub http_busy: usize,
}

/// The last published numbers. The shard locks it for a copy once a second; readers too.
#[derive(Clone, Debug, Default)]
pub struct SharedStats(Arc<Mutex<Stats>>);

impl SharedStats {
    pub fn get(&self) -> Stats {
        // A panic while copying numbers leaves numbers.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set(&self, stats: Stats) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }
}
