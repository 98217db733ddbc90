//! What a rack counts of itself: `GET /metrics` on its HTTP port, in Prometheus' text format.
//!
//! Shards publish a copy of their plain counters once a second; nothing here is on a packet's path.

mod allow;
mod dhcp;

pub use allow::Ends;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use lease::rack::Mode;
use shard::SharedStats;
use tokio::sync::watch;

use crate::link::Status;
use crate::neighbour;
use crate::work::{Counters, Metrics};

/// Blocks, and how many addresses of each some host answers for, so that they are dealt to nobody for now.
pub type Claimed = Arc<dyn Fn() -> Vec<(lease::BlockId, u32)> + Send + Sync>;

pub fn claimed(shards: Vec<SharedStats>) -> Claimed {
    Arc::new(move || {
        let told = shards.iter().flat_map(|shard| shard.get().dhcp_claimed);
        together(told)
    })
}

/// A block is all shards': each tells of the addresses that it deals.
fn together(told: impl Iterator<Item = (lease::BlockId, u32)>) -> Vec<(lease::BlockId, u32)> {
    let mut of_blocks = BTreeMap::new();
    for (block, addresses) in told {
        *of_blocks.entry(block).or_default() += addresses;
    }
    of_blocks.into_iter().collect()
}

/// What the rack counts, as it is whenever it is asked for: names with their labels, and values.
pub type Numbers = Arc<dyn Fn() -> Vec<(String, u64)> + Send + Sync>;

pub fn numbers(
    shards: Vec<SharedStats>,
    status: watch::Receiver<Status>,
    work: Arc<Counters>,
) -> Numbers {
    Arc::new(move || {
        let mut numbers = Vec::new();
        for (index, shard) in shards.iter().enumerate() {
            shard_lines(&mut numbers, index, &shard.get());
        }
        link_lines(&mut numbers, &status.borrow());
        work_lines(&mut numbers, &work);
        numbers
    })
}

/// The page of these numbers, for those who may read it.
pub fn page(
    numbers: Numbers,
    named: Vec<ipnet::IpNet>,
    snapshot: Arc<arc_swap::ArcSwap<shard::Snapshot>>,
) -> Metrics {
    Arc::new(move |ends| {
        // What the kernel does not say now is no management network.
        let device_to = |address| neighbour::device_to(address).ok().flatten();
        if !allow::is_allowed(ends, &named, &snapshot.load(), device_to) {
            return None;
        }
        let mut text = String::new();
        for (name, value) in numbers() {
            // Writing to a String never fails.
            let _ = writeln!(text, "muster_rack_{name} {value}");
        }
        Some(text)
    })
}

fn line(numbers: &mut Vec<(String, u64)>, name: &str, labels: &str, value: u64) {
    numbers.push((format!("{name}{labels}"), value));
}

/// One line per named field: `lines!(text, labels, "tftp", counters, [requests, started])`.
macro_rules! lines {
    ($text:expr, $labels:expr, $group:literal, $from:expr, [$($field:ident),* $(,)?]) => {
        $(line($text, concat!($group, "_", stringify!($field), "_total"), $labels, $from.$field);)*
    };
}

fn shard_lines(text: &mut Vec<(String, u64)>, index: usize, stats: &shard::Stats) {
    let labels = &format!("{{shard=\"{index}\"}}");
    for (name, value) in [
        ("dhcp_addresses", stats.dhcp_usage.addresses),
        ("dhcp_addresses_free", stats.dhcp_usage.free),
        ("dhcp_offered", stats.dhcp_usage.offered),
        ("dhcp_bound", stats.dhcp_usage.bound),
        ("dhcp_resting", stats.dhcp_usage.resting),
        ("dhcp_pending", stats.dhcp_usage.pending),
        ("tftp_transfers", stats.tftp_transfers),
        ("tftp_unconfirmed", stats.tftp_unconfirmed),
        ("tftp_pending", stats.tftp_pending),
        ("http_connections", stats.http_connections),
        ("http_connections_new", stats.http_new),
        ("http_connections_idle", stats.http_idle),
        ("http_connections_busy", stats.http_busy),
        ("driver_streams", stats.driver.streams as usize),
    ] {
        line(text, name, labels, value as u64);
    }
    for sent in dhcp::SENT {
        line(text, &dhcp::name(*sent), labels, stats.dhcp.sent(*sent));
    }
    for drop in dhcp::DROPS {
        let reason = dhcp::reason(*drop);
        let labels = format!("{{shard=\"{index}\",reason=\"{reason}\"}}");
        line(
            text,
            "dhcp_dropped_total",
            &labels,
            stats.dhcp.dropped(*drop),
        );
    }
    lines!(
        text,
        labels,
        "shard",
        stats.shard,
        [
            turns,
            restarts,
            dhcp_unreadable,
            dhcp_no_link,
            dhcp_no_slot,
            dhcp_handed_over,
            dhcp_hand_overs_refused,
            dhcp_taken_over,
            dhcp_not_kept,
            probes_lost,
            leases_refused,
            events_lost,
            events_left_out,
            wants_lost,
            hand_offs,
            hand_offs_refused,
            boot_configs,
            boot_configs_by_call,
            boot_calls_unanswered,
            boot_calls_refused,
            tftp_not_served,
            connections_refused,
            displaced_new,
            displaced_idle,
            displaced_busy,
        ]
    );
    lines!(
        text,
        labels,
        "tftp",
        stats.tftp,
        [
            requests,
            started,
            confirmed,
            finished,
            aborted,
            gave_up,
            replaced,
            displaced_unconfirmed,
            displaced_share,
            displaced_stalled,
            displaced_stranger,
            no_place,
            rationed,
            blocks,
            resent,
            not_found,
            refused,
            malformed,
            stray,
            wrong_tid,
            repeated,
            shed,
            expired,
            no_slot,
        ]
    );
    lines!(
        text,
        labels,
        "http",
        stats.http,
        [
            requests,
            served,
            body_bytes,
            not_found,
            refused,
            range_refused,
            unavailable,
            handed_off,
            heads_late,
            idle,
            stalled,
            broken,
            flooded,
        ]
    );
    lines!(
        text,
        labels,
        "driver",
        stats.driver,
        [
            datagrams_received,
            datagrams_sent,
            sends_failed,
            trains_split,
            frames_tagged,
            datagrams_unusable,
            buffers_exhausted,
            accepted,
            accept_refused,
            accept_gone,
            accept_failed,
            stream_sends_failed,
            file_bytes,
            enters,
            enters_refused,
            arms_failed,
        ]
    );
}

fn link_lines(text: &mut Vec<(String, u64)>, status: &Status) {
    let attached = matches!(status.mode, Mode::Attached);
    for (name, value) in [
        ("regions_linked", status.regions.len() as u64),
        ("attached", u64::from(attached)),
        ("spooled", status.spooled as u64),
        ("feed_watermark", status.watermark),
        ("machines", status.machines as u64),
        ("shard_mail_dropped_total", status.shard_mail_dropped),
        ("boot_archs_displaced_total", status.archs_displaced),
    ] {
        line(text, name, "", value);
    }
    lines!(
        text,
        "",
        "lease",
        status.leases,
        [
            requests,
            replies_durable,
            replies_refused,
            replies_unknown,
            mute,
            full,
            batches,
            batch_rows,
            resends,
            drained,
            drained_refused,
            detached,
            attaches,
            forgets,
            releases_dropped,
        ]
    );
    lines!(
        text,
        "",
        "feed",
        status.feed,
        [snapshots, deltas, items, removed, gaps, unknown]
    );
    lines!(
        text,
        "",
        "boot_call",
        status.boots,
        [calls, joined, refused, unanswered]
    );
    lines!(
        text,
        "",
        "event",
        status.events,
        [reported, dropped, left_out]
    );
}

fn work_lines(text: &mut Vec<(String, u64)>, work: &Counters) {
    for (name, counter) in [
        ("arp_asked_total", &work.arp.asked),
        ("arp_in_use_total", &work.arp.in_use),
        ("arp_failed_total", &work.arp.failed),
        ("arp_refused_total", &work.arp.refused),
        ("power_asked_total", &work.power.asked),
        ("power_done_total", &work.power.done),
        ("power_failed_total", &work.power.failed),
        ("power_refused_total", &work.power.refused),
        ("fill_pieces_total", &work.fill.pieces),
        ("fill_bytes_total", &work.fill.bytes),
        ("fill_bad_pieces_total", &work.fill.bad),
        ("fill_filled_total", &work.fill.filled),
        ("fill_failed_total", &work.fill.failed),
        ("fill_evicted_total", &work.fill.evicted),
        ("fill_damaged_total", &work.fill.damaged),
        ("proxy_connections_total", &work.proxy.connections),
        ("proxy_requests_total", &work.proxy.requests),
        ("proxy_attested_total", &work.proxy.attested),
        ("proxy_disputed_total", &work.proxy.disputed),
        ("proxy_unclear_total", &work.proxy.unclear),
        ("proxy_refused_total", &work.proxy.refused),
        ("proxy_displaced_total", &work.proxy.displaced),
        ("proxy_slow_total", &work.proxy.slow),
        ("proxy_no_memory_total", &work.proxy.no_memory),
        ("proxy_broken_total", &work.proxy.broken),
        ("work_wants_total", &work.shards.wants),
        ("work_hand_offs_total", &work.shards.hand_offs),
        ("work_refused_total", &work.shards.refused),
        ("proxy_retried_total", &work.proxy.retried),
        ("proxy_unavailable_total", &work.proxy.unavailable),
        ("proxy_rejected_total", &work.proxy.rejected),
    ] {
        line(text, name, "", counter.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(numbers: Numbers) -> String {
        let end = ([127, 0, 0, 1], 1).into();
        let ends = Ends {
            peer: end,
            local: end,
        };
        page(numbers, Vec::new(), Arc::default())(ends).expect("this host may read it")
    }

    #[test]
    fn what_is_claimed_of_a_block_is_of_all_shards() {
        let told = [(3, 5), (1, 2), (3, 4)].map(|(block, count)| (lease::BlockId(block), count));
        let all = [(1, 2), (3, 9)].map(|(block, count)| (lease::BlockId(block), count));
        assert_eq!(together(told.into_iter()), all);
    }

    #[test]
    fn metrics_are_for_this_host_management_networks_and_those_that_are_named() {
        let ends = |peer: [u8; 4], local: [u8; 4]| Ends {
            peer: (peer, 1).into(),
            local: (local, 2).into(),
        };
        let mut snapshot = shard::Snapshot::default();
        let named = ["192.0.2.0/24".parse().expect("a network")];
        let allowed = |ends, snapshot: &shard::Snapshot| {
            allow::is_allowed(ends, &named, snapshot, |address| match address.octets() {
                [10, 1, 0, _] => Some(900),
                [10, 2, 0, _] => snapshot.links()[0].index,
                _ => None,
            })
        };
        let (management, local) = ([10, 1, 0, 7], [10, 1, 0, 1]);
        assert!(
            !allowed(ends(management, local), &snapshot),
            "no link is known"
        );
        snapshot.set_links(vec![crate::attest::tests::link()]);
        for (peer, local, want, why) in [
            ([127, 0, 0, 1], [127, 0, 0, 1], true, "loopback"),
            ([10, 99, 0, 1], [10, 99, 0, 1], true, "the host itself"),
            (management, local, true, "a management network"),
            ([10, 98, 0, 7], local, false, "a machine of another rack"),
            (
                [10, 2, 0, 7],
                local,
                false,
                "another subnet on the machines' link",
            ),
            ([10, 99, 0, 7], [10, 99, 0, 1], false, "a machine"),
            (
                [10, 99, 0, 7],
                local,
                false,
                "a machine, by the other address",
            ),
            (
                management,
                [10, 99, 0, 1],
                false,
                "to a provisioning address",
            ),
            ([192, 0, 2, 7], [10, 99, 0, 1], true, "named"),
        ] {
            assert_eq!(allowed(ends(peer, local), &snapshot), want, "{why}");
        }
    }

    #[test]
    fn every_line_is_a_name_and_a_number() {
        let (sender, status) = watch::channel(Status::default());
        let work = Arc::new(Counters::default());
        work.power.asked.add(7);
        let shards = vec![SharedStats::default(), SharedStats::default()];
        let numbers = numbers(shards, status, work);
        sender.send_modify(|status| status.machines = 3);
        let text = shown(numbers);
        assert!(text.contains("muster_rack_machines 3\n"), "{text}");
        assert!(text.contains("muster_rack_power_asked_total 7\n"), "{text}");
        assert!(
            text.contains("muster_rack_tftp_requests_total{shard=\"1\"} 0\n"),
            "{text}"
        );
        let mut names = std::collections::HashSet::new();
        for line in text.lines() {
            let (name, value) = line.split_once(' ').expect("name and value");
            assert!(value.parse::<u64>().is_ok(), "{line}");
            assert!(names.insert(name), "{name} twice");
        }
    }
}
