//! What a region lets in, and how much of it: the shares of whoever asks.
//!
//! ```text
//!   accept -> Room of connections: a place each, a share per source; who has shown nothing yet goes first
//!          -> http: time for the whole head, a pace for the answer
//!   body   -> Room of octets: the same rule, by octets instead of places
//!   secret -> Guesses: who guessed wrong waits longer each time; who was right before does not
//! ```
//! The rules ([`Places`], [`Guesses`], [`Buckets`], [`Recent`]) are pure: they are given the time. Nothing here knows a
//! route, a statement of SQL or a Cap'n Proto type.

mod bucket;
pub mod descriptors;
mod guesses;
pub mod http;
mod paced;
mod places;
mod recent;
mod room;
mod source;

pub use bucket::{Buckets, Rate};
pub use guesses::{Guesses, Patience, Verdict};
pub use paced::Paced;
pub use places::{Bounds, Full, Places};
pub use recent::Recent;
pub use room::{Numbers, Place, Room};
pub use source::Source;
