//! What the kernel must be able to do, checked at start and said by name.

use std::io;

use io_uring::{IoUring, Probe, opcode};

/// A feature that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{feature} (Linux {since})")]
pub struct Missing {
    pub feature: &'static str,
    pub since: &'static str,
}

/// Why a shard has no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error(
        "io_uring is not available: Linux 6.1 or newer is needed, and kernel.io_uring_disabled must allow it"
    )]
    Unavailable(#[source] io::Error),
    #[error("creating an io_uring with SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1)")]
    Setup(#[source] io::Error),
    #[error("this kernel's io_uring lacks {0}")]
    Missing(Missing),
    #[error("registering receive buffers (provided-buffer rings, Linux 5.19)")]
    Buffers(#[source] io::Error),
    #[error("watching the mailbox and the sockets")]
    Arm(#[source] io::Error),
}

/// The operations this driver submits. Multishot forms have no probe bit; the newest needed operation vouches for them:
/// SEND_ZC came with 6.0, as did multishot receives.
const OPERATIONS: [(u8, Missing); 7] = [
    (
        opcode::SendMsg::CODE,
        Missing {
            feature: "SENDMSG",
            since: "5.3",
        },
    ),
    (
        opcode::RecvMsgMulti::CODE,
        Missing {
            feature: "RECVMSG",
            since: "5.3",
        },
    ),
    (
        opcode::AcceptMulti::CODE,
        Missing {
            feature: "ACCEPT",
            since: "5.5",
        },
    ),
    (
        opcode::Send::CODE,
        Missing {
            feature: "SEND",
            since: "5.6",
        },
    ),
    (
        opcode::AsyncCancel2::CODE,
        Missing {
            feature: "ASYNC_CANCEL",
            since: "5.5",
        },
    ),
    (
        opcode::PollAdd::CODE,
        Missing {
            feature: "POLL_ADD",
            since: "5.1",
        },
    ),
    (
        opcode::SendZc::CODE,
        Missing {
            feature: "multishot receives",
            since: "6.0",
        },
    ),
];

/// Checks a ring for everything this driver uses.
pub(crate) fn check(ring: &IoUring) -> Result<(), RingError> {
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(RingError::Setup)?;
    let features = [
        (
            ring.params().is_feature_nodrop(),
            "completions that are never dropped",
            "5.5",
        ),
        (
            ring.params().is_feature_ext_arg(),
            "waits with a timeout (EXT_ARG)",
            "5.11",
        ),
        (ring.params().is_feature_fast_poll(), "fast poll", "5.7"),
    ];
    for (present, feature, since) in features {
        if !present {
            return Err(RingError::Missing(Missing { feature, since }));
        }
    }
    match OPERATIONS
        .iter()
        .find(|(code, _)| !probe.is_supported(*code))
    {
        Some((_, missing)) => Err(RingError::Missing(*missing)),
        None => Ok(()),
    }
}
