//! What is said of a traced machine's messages: one event each, with what became of it.
//!
//! Nothing here runs, and nothing is allocated, but for a machine that an operator follows.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use wire::dhcp4::View;

/// `model::EventType` name.
pub(crate) const KIND: &str = "DHCP_TRACE";

/// Traced messages that are told of in one second; the rest are counted as lost events. A machine that floods the rack while
/// somebody follows it must not flood the event log.
const PER_SECOND_MAX: u32 = 64;

/// How many messages may still be told of in this second.
pub(crate) struct Budget {
    since: Instant,
    used: u32,
}

impl Budget {
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            used: 0,
        }
    }

    /// Whether one more may be told of.
    pub fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        let may = self.used < PER_SECOND_MAX;
        self.used += u32::from(may);
        may
    }
}

/// A message that came; `dropped`: why it got no answer. What is answered later (a grant waits for its commit) is traced
/// when it leaves.
pub(crate) fn received(query: &View<'_>, vlan: u32, dropped: Option<dhcp::Drop>) -> String {
    let mut text = message("got", query);
    let fate = match dropped {
        None => "taken".to_owned(),
        Some(reason) => format!("no answer: {reason:?}"),
    };
    // Writing to a String never fails.
    let _ = write!(text, " on VLAN {vlan}: {fate}");
    text
}

/// A message of ours to a traced machine.
pub(crate) fn sent(reply: &View<'_>) -> String {
    message("sent", reply)
}

fn message(verb: &str, view: &View<'_>) -> String {
    let kind = match view.message_type() {
        Some(kind) => format!("{kind:?}").to_ascii_uppercase(),
        None => "BOOTP".to_owned(),
    };
    let mut text = format!("{verb} {kind} xid {:#010x}", view.xid());
    let mut add = |name: &str, address: Ipv4Addr| {
        if !address.is_unspecified() {
            let _ = write!(text, " {name} {address}");
        }
    };
    add("ciaddr", view.ciaddr());
    add("yiaddr", view.yiaddr());
    add(
        "asking for",
        view.requested_address().unwrap_or(Ipv4Addr::UNSPECIFIED),
    );
    add("server", view.server_id().unwrap_or(Ipv4Addr::UNSPECIFIED));
    add("relay", view.giaddr());
    if !view.is_request()
        && let Some(secs) = view.lease_secs()
    {
        let _ = write!(text, " for {secs} s");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DISCOVER or OFFER with these fields.
    fn octets(op: u8, kind: u8, yiaddr: [u8; 4], options: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; 240];
        (octets[0], octets[1], octets[2]) = (op, 1, 6);
        octets[4..8].copy_from_slice(&[0, 1, 2, 3]);
        octets[16..20].copy_from_slice(&yiaddr);
        octets[24..28].copy_from_slice(&[10, 9, 0, 1]);
        octets[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        octets[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        octets.extend([53, 1, kind]);
        octets.extend(options);
        octets.push(255);
        octets
    }

    #[test]
    fn a_flood_is_told_of_in_part() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let told = |budget: &mut Budget, at| (0..1000).filter(|_| budget.take(at)).count();
        assert_eq!(told(&mut budget, start), 64);
        assert_eq!(told(&mut budget, start + Duration::from_millis(999)), 0);
        assert_eq!(told(&mut budget, start + Duration::from_secs(1)), 64);
    }

    #[test]
    fn a_message_is_told_with_what_became_of_it() {
        let discover = octets(1, 1, [0; 4], &[50, 4, 10, 0, 0, 5]);
        let discover = View::parse(&discover).unwrap();
        assert_eq!(
            received(&discover, 5001, Some(dhcp::Drop::NoFreeAddress)),
            "got DISCOVER xid 0x00010203 asking for 10.0.0.5 relay 10.9.0.1 on VLAN 5001: no answer: NoFreeAddress"
        );
        assert!(received(&discover, 5001, None).ends_with("on VLAN 5001: taken"));
        let offer = octets(
            2,
            2,
            [10, 0, 0, 5],
            &[51, 4, 0, 0, 2, 0x58, 54, 4, 10, 0, 0, 1],
        );
        assert_eq!(
            sent(&View::parse(&offer).unwrap()),
            "sent OFFER xid 0x00010203 yiaddr 10.0.0.5 server 10.0.0.1 relay 10.9.0.1 for 600 s"
        );
    }
}
