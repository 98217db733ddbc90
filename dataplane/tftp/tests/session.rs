//! Read sessions by script: an event at a time, the step it must cause.

use std::time::{Duration, Instant};

use tftp::{ReadSession, Step, Terms};

const TERMS: Terms = Terms {
    block_bytes: 512,
    window_blocks: 1,
    retry_after: Duration::from_secs(1),
    retries_max: 3,
};

struct Script {
    epoch: Instant,
    session: ReadSession,
}

/// A step without its deadline, which `check` compares with the clock of the script.
#[derive(Debug, PartialEq, Eq)]
enum Want {
    Oack,
    Blocks(u64, u64),
    Wait,
    Finished,
    GaveUp,
}

impl Script {
    fn new(terms: Terms, file_bytes: u64, oack: bool, want: Want) -> Self {
        let epoch = Instant::now();
        let (session, step) = ReadSession::start(terms, file_bytes, oack, epoch);
        check(epoch, step, want);
        Self { epoch, session }
    }

    fn ack(mut self, ms: u64, block: u16, want: Want) -> Self {
        let now = self.epoch + Duration::from_millis(ms);
        check(now, self.session.on_ack(block, now), want);
        self
    }

    fn deadline(mut self, ms: u64, want: Want) -> Self {
        let now = self.epoch + Duration::from_millis(ms);
        check(now, self.session.on_deadline(now), want);
        self
    }
}

fn check(now: Instant, step: Step, want: Want) {
    let got = match step {
        Step::SendOack { deadline } => {
            assert_eq!(deadline, now + TERMS.retry_after);
            Want::Oack
        }
        Step::SendBlocks {
            first,
            last,
            deadline,
        } => {
            assert_eq!(deadline, now + TERMS.retry_after);
            Want::Blocks(first, last)
        }
        Step::Wait => Want::Wait,
        Step::Finished => Want::Finished,
        Step::GaveUp => Want::GaveUp,
    };
    assert_eq!(got, want);
}

use Want::{Blocks, Finished, GaveUp, Oack, Wait};

#[test]
fn plain_transfer_ends_with_a_short_block() {
    Script::new(TERMS, 1000, false, Blocks(1, 1))
        .ack(1, 1, Blocks(2, 2))
        .ack(2, 2, Finished);
}

#[test]
fn a_file_that_divides_evenly_ends_with_an_empty_block() {
    Script::new(TERMS, 1024, false, Blocks(1, 1))
        .ack(1, 1, Blocks(2, 2))
        .ack(2, 2, Blocks(3, 3))
        .ack(3, 3, Finished);
    Script::new(TERMS, 0, false, Blocks(1, 1)).ack(1, 1, Finished);
}

#[test]
fn oack_waits_for_ack_0() {
    Script::new(TERMS, 10, true, Oack)
        .ack(1, 1, Wait)
        .deadline(999, Wait)
        .deadline(1_000, Oack)
        .ack(1_001, 0, Blocks(1, 1))
        .ack(1_002, 0, Wait)
        .ack(1_003, 1, Finished);
}

/// A repeated ACK changes nothing (RFC 1123 §4.2.3.1).
#[test]
fn no_sorcerers_apprentice() {
    Script::new(TERMS, 5_000, false, Blocks(1, 1))
        .ack(1, 1, Blocks(2, 2))
        .ack(2, 1, Wait)
        .ack(3, 1, Wait)
        .ack(4, 2, Blocks(3, 3))
        .ack(5, 1, Wait)
        .ack(6, 9, Wait);
}

/// A lost window is sent once more from the last confirmed block.
#[test]
fn lost_window_is_resent_from_the_last_ack() {
    Script::new(
        Terms {
            window_blocks: 4,
            ..TERMS
        },
        5_000,
        false,
        Blocks(1, 4),
    )
    .ack(1, 2, Blocks(3, 6)) // client saw a gap after 2
    .ack(2, 2, Wait) // repeated
    .deadline(1_001, Blocks(3, 6))
    .ack(1_002, 6, Blocks(7, 10))
    .ack(1_003, 10, Finished); // 5_000 / 512 + 1 = 10
}

#[test]
fn gives_up_after_the_last_resend_and_an_ack_starts_the_count_again() {
    Script::new(TERMS, 5_000, false, Blocks(1, 1))
        .deadline(1_000, Blocks(1, 1))
        .deadline(2_000, Blocks(1, 1))
        .ack(2_500, 1, Blocks(2, 2))
        .deadline(3_500, Blocks(2, 2))
        .deadline(4_500, Blocks(2, 2))
        .deadline(5_500, Blocks(2, 2))
        .deadline(6_500, GaveUp);
}

/// Block numbers are 16 bits on the wire; a file of 8-octet blocks passes them more than twice.
#[test]
fn block_numbers_wrap() {
    for window in [1u16, 7, 16] {
        let terms = Terms {
            block_bytes: 8,
            window_blocks: window,
            ..TERMS
        };
        let now = Instant::now();
        let file_bytes = 8 * 150_000 + 3;
        let (mut session, mut step) = ReadSession::start(terms, file_bytes, false, now);
        let mut expected = 1;
        loop {
            match step {
                Step::SendBlocks { first, last, .. } => {
                    assert_eq!(first, expected);
                    expected = last + 1;
                    // An ACK of the previous round of 65,536 is old, not ahead.
                    assert_eq!(session.on_ack((first - 1) as u16, now), Step::Wait);
                    step = session.on_ack(last as u16, now);
                }
                Step::Finished => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(expected, 150_002);
    }
}

/// A repeated request before any answer repeats our first packet; after one it is another boot.
#[test]
fn repeated_request_is_answered_only_before_the_first_ack() {
    let now = Instant::now();
    for oack in [false, true] {
        let (mut session, first) = ReadSession::start(TERMS, 1_000, oack, now);
        assert_eq!(session.on_repeated_request(now), Some(first));
        session.on_ack(u16::from(!oack), now);
        assert_eq!(session.on_repeated_request(now), None);
    }
}
