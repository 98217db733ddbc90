//! Option negotiation: what a client asks for, cut to what we and its link can bear (RFC 2347, 2348, 2349, 7440).

use std::time::Duration;

use wire::tftp::{BLOCK_BYTES_DEFAULT, BLOCK_BYTES_MIN, Options};

/// What both sides agreed on before the first DATA packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// File octets per DATA packet, 8..=65464.
    pub block_bytes: u16,
    /// DATA packets sent before an ACK is due, 1..=65535.
    pub window_blocks: u16,
    /// How long to wait for that ACK.
    pub retry_after: Duration,
    /// Times one window may be sent again before giving up.
    pub retries_max: u8,
}

#[derive(Clone, Copy, Debug)]
pub struct TermsLimits {
    /// 1468 fills an Ethernet frame with IPv4; 1428 leaves room for IPv6, tunnels or VLAN tags.
    pub block_bytes_max: u16,
    pub window_blocks_max: u16,
    /// When the client does not ask for a timeout.
    pub retry_after: Duration,
    /// A longer timeout is not acknowledged (RFC 2349): how long a transfer may be silent is ours to say.
    pub timeout_secs_max: u8,
    pub retries_max: u8,
}

impl Default for TermsLimits {
    fn default() -> Self {
        Self {
            block_bytes_max: 1468,
            window_blocks_max: 16,
            retry_after: Duration::from_secs(1),
            timeout_secs_max: 10,
            retries_max: 5,
        }
    }
}

/// IPv4, UDP and TFTP headers in front of a block; an IPv6 header is 20 octets longer.
const HEADERS_IPV4_BYTES: u16 = 20 + 8 + 4;
const HEADERS_IPV6_BYTES: u16 = 40 + 8 + 4;

/// The terms of a transfer, and the options to acknowledge (empty: no OACK, DATA 1 at once).
///
/// `mtu` is that of the client's link, `None` where it is not known.
pub fn negotiate(
    asked: &Options,
    limits: &TermsLimits,
    mtu: Option<u16>,
    ipv6: bool,
    file_bytes: u64,
) -> (Terms, Options) {
    let headers = if ipv6 {
        HEADERS_IPV6_BYTES
    } else {
        HEADERS_IPV4_BYTES
    };
    let fits = mtu.map_or(u16::MAX, |mtu| mtu.saturating_sub(headers));
    // A block that has to be fragmented is lost whole; firmware rarely reassembles.
    let block_max = limits.block_bytes_max.min(fits).max(BLOCK_BYTES_MIN);
    let acknowledged = Options {
        block_bytes: asked.block_bytes.map(|bytes| bytes.min(block_max)),
        timeout_secs: asked
            .timeout_secs
            .filter(|secs| *secs <= limits.timeout_secs_max),
        transfer_bytes: asked.transfer_bytes.map(|_| file_bytes),
        window_blocks: asked
            .window_blocks
            .map(|blocks| blocks.min(limits.window_blocks_max.max(1))),
    };
    let terms = Terms {
        block_bytes: acknowledged.block_bytes.unwrap_or(BLOCK_BYTES_DEFAULT),
        window_blocks: acknowledged.window_blocks.unwrap_or(1),
        retry_after: acknowledged
            .timeout_secs
            .map_or(limits.retry_after, |secs| {
                Duration::from_secs(u64::from(secs))
            }),
        retries_max: limits.retries_max,
    };
    (terms, acknowledged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_fit_both_sides() {
        let asked = |block, window| Options {
            block_bytes: block,
            window_blocks: window,
            ..Options::default()
        };
        let cases = [
            // case                 blksize      windowsize mtu         ipv6   block window
            ("nothing asked", None, None, Some(1500), false, 512, 1),
            ("as asked", Some(1408), Some(4), Some(1500), false, 1408, 4),
            ("cap", Some(65_464), Some(65_535), None, false, 1468, 16),
            ("ipv4 link", Some(9000), None, Some(1400), false, 1368, 1),
            ("ipv6 link", Some(9000), None, Some(1500), true, 1448, 1),
            ("smallest", Some(8), Some(1), Some(1500), false, 8, 1),
            ("absurd mtu", Some(512), None, Some(10), false, 8, 1),
        ];
        for (case, block, window, mtu, ipv6, want_block, want_window) in cases {
            let (terms, oack) =
                negotiate(&asked(block, window), &TermsLimits::default(), mtu, ipv6, 1);
            assert_eq!(
                (terms.block_bytes, terms.window_blocks),
                (want_block, want_window),
                "{case}"
            );
            assert_eq!(oack.block_bytes.is_some(), block.is_some(), "{case}");
            assert_eq!(oack.window_blocks.is_some(), window.is_some(), "{case}");
        }
    }

    #[test]
    fn size_is_told_and_timeout_is_honoured() {
        let asked = Options {
            transfer_bytes: Some(0),
            timeout_secs: Some(7),
            ..Options::default()
        };
        let (terms, oack) = negotiate(&asked, &TermsLimits::default(), None, false, 3_800_000);
        assert_eq!(oack.transfer_bytes, Some(3_800_000));
        assert_eq!(oack.timeout_secs, Some(7));
        assert_eq!(terms.retry_after, Duration::from_secs(7));
    }
    /// RFC 2349: the value comes back as it was asked, or not at all.
    #[test]
    fn a_timeout_beyond_our_limit_is_not_acknowledged() {
        let limits = TermsLimits::default();
        for (secs, want) in [(1, Some(1)), (10, Some(10)), (11, None), (255, None)] {
            let asked = Options {
                timeout_secs: Some(secs),
                ..Options::default()
            };
            let (terms, oack) = negotiate(&asked, &limits, None, false, 1);
            assert_eq!(oack.timeout_secs, want);
            let after = want.map_or(limits.retry_after, |secs| Duration::from_secs(secs.into()));
            assert_eq!(terms.retry_after, after);
        }
    }
}
