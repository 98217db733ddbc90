//! What requests share, and each source's part of it: octets of bodies, look-ups of keys, password checks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gate::{Bounds, Full, Guesses, Numbers, Patience, Place, Rate, Room, Source, Verdict};
use http::request::Parts;

use crate::error::ApiError;

/// Octets of bodies whose sender has not shown who it is.
const STRANGERS: Bounds = bounds(8 << 20, 256 << 10);
/// Of one such body: logins, enlistments, credentials in a form.
pub const STRANGER_BYTES_MAX: usize = 64 << 10;
/// Octets of bodies of accounts: forms and chunks of images.
const CALLERS: Bounds = bounds(192 << 20, 64 << 20);
/// Octets of what booted machines post. One signal of the largest size and some small ones are a machine's share.
const MACHINES: Bounds = bounds(128 << 20, 18 << 20);
/// Look-ups of keys that were not found right lately.
const LOOKUPS: Bounds = bounds(16, 4);
const LOOKUP_WAIT: Duration = Duration::from_secs(5);
/// Password checks at once: each takes some 20 MiB and a core for a while. Who logged in from there before has a lane
/// of its own.
const CHECKS: Bounds = bounds(2, 1);
const CHECKS_KNOWN: Bounds = bounds(2, 1);
const CHECK_WAIT: Duration = Duration::from_secs(10);

const LOGINS: Patience = Patience {
    free: 3,
    wait: Duration::from_secs(2),
    wait_max: Duration::from_secs(900),
    rate: Rate {
        burst: 10,
        every: Duration::from_secs(30),
    },
    good: Duration::from_secs(7 * 24 * 3600),
};
/// Keys have 190 random bits: this only bounds the work. A program with an old key is told no, at a pace.
const KEYS: Patience = Patience {
    free: 20,
    wait: Duration::from_secs(1),
    wait_max: Duration::from_secs(60),
    rate: Rate {
        burst: 100,
        every: Duration::from_millis(200),
    },
    good: Duration::from_secs(24 * 3600),
};
/// Sources and names remembered of each kind.
const REMEMBERED_MAX: usize = 16 << 10;

const fn bounds(total: u64, each: u64) -> Bounds {
    Bounds {
        total,
        open: total,
        each,
    }
}

/// A request that a rack passed on for a machine of its own: what rack listeners mark all of theirs with.
#[derive(Clone, Copy, Debug)]
pub struct ThroughRack;

/// Whose request it is, as the listener saw it.
pub(crate) fn source_of(parts: &Parts) -> Source {
    let source = parts.extensions.get::<Source>().cloned();
    source.unwrap_or(Source::Host(std::net::Ipv4Addr::UNSPECIFIED.into()))
}

pub(crate) struct Shares {
    pub strangers: Arc<Room>,
    pub callers: Arc<Room>,
    pub machines: Arc<Room>,
    /// Who reads the outputs of scripts.
    pub readers: Arc<Room>,
    lookups: Arc<Room>,
    checks: Arc<Room>,
    checks_known: Arc<Room>,
    keys: Mutex<Guesses>,
    logins: Mutex<Guesses>,
}

impl Default for Shares {
    fn default() -> Self {
        let guesses = |patience| Mutex::new(Guesses::new(patience, REMEMBERED_MAX));
        Self {
            strangers: Room::new("body_octets_strangers", STRANGERS),
            callers: Room::new("body_octets_accounts", CALLERS),
            machines: Room::new("body_octets_machines", MACHINES),
            readers: crate::results::readers(),
            lookups: Room::new("key_lookups", LOOKUPS),
            checks: Room::new("password_checks", CHECKS),
            checks_known: Room::new("password_checks_known", CHECKS_KNOWN),
            keys: guesses(KEYS),
            logins: guesses(LOGINS),
        }
    }
}

impl Shares {
    pub fn numbers(&self) -> Vec<Numbers> {
        [
            &self.strangers,
            &self.callers,
            &self.machines,
            &self.readers,
            &self.lookups,
            &self.checks,
            &self.checks_known,
        ]
        .map(|room| room.numbers())
        .into()
    }

    /// A turn to look a key up; none needed for a key that was right from here.
    pub async fn key(&self, source: &Source, token_key: &str) -> Result<Option<Place>, ApiError> {
        match verdict(&self.keys, source, token_key) {
            Verdict::Known => Ok(None),
            Verdict::Wait(wait) => Err(ApiError::TooMany(wait)),
            Verdict::Stranger => {
                let turn = self.lookups.wait(source.clone(), 1, LOOKUP_WAIT).await;
                turn.map(Some)
                    .map_err(|_| ApiError::Unavailable("Too many requests at once. Try again."))
            }
        }
    }

    pub fn key_was(&self, right: bool, source: &Source, token_key: &str) {
        note(&self.keys, right, source, token_key);
    }

    /// A turn to check a password.
    pub async fn login(&self, source: &Source, username: &str) -> Result<Place, ApiError> {
        let room = match verdict(&self.logins, source, username) {
            Verdict::Wait(wait) => return Err(ApiError::TooMany(wait)),
            Verdict::Known => &self.checks_known,
            Verdict::Stranger => &self.checks,
        };
        let turn = self.check(room, source.clone()).await?;
        // Those who were before us in the queue may have guessed wrong for this source.
        match verdict(&self.logins, source, username) {
            Verdict::Wait(wait) => Err(ApiError::TooMany(wait)),
            _ => Ok(turn),
        }
    }

    /// A turn to hash a new password for an account.
    pub async fn hashing(&self, source: Source) -> Result<Place, ApiError> {
        self.check(&self.checks_known, source).await
    }

    async fn check(&self, room: &Arc<Room>, source: Source) -> Result<Place, ApiError> {
        room.wait(source, 1, CHECK_WAIT)
            .await
            .map_err(|_| ApiError::Unavailable("Too many logins at once. Try again."))
    }

    pub fn login_was(&self, right: bool, source: &Source, username: &str) {
        note(&self.logins, right, source, username);
    }
}

fn verdict(guesses: &Mutex<Guesses>, source: &Source, name: &str) -> Verdict {
    let guesses = guesses.lock().unwrap_or_else(PoisonError::into_inner);
    guesses.may_try(source, name, Instant::now())
}

fn note(guesses: &Mutex<Guesses>, right: bool, source: &Source, name: &str) {
    let mut guesses = guesses.lock().unwrap_or_else(PoisonError::into_inner);
    if right {
        guesses.succeeded(source, name, Instant::now());
    } else {
        guesses.failed(source, name, Instant::now());
    }
}

/// Why a body found no room.
pub(crate) fn no_room(full: Full) -> ApiError {
    ApiError::Unavailable(match full {
        Full::Source => "Too many request bodies of yours at once. Try again.",
        Full::All => "Too many request bodies at once. Try again.",
    })
}
