//! The HTTP/1.1 file responder of one shard: images, loaders and boot configs to machines that boot. Sans-IO.
//!
//! A [`Connection`] is given the octets that arrive and says what to do next; the shard owns the socket, the clock and
//! the [`Catalog`] that knows what a path means. An [`Object`] is one image file, shared by all shards of the rack, that
//! may still be on its way: its pieces are served as soon as they are there and verified.
//!
//! What is not ours (`/MAAS/...`) is handed off as a connected socket with the octets already read.
//! No TLS, no chunked coding, no request bodies. RFC 9110 (ranges, methods), RFC 9112 (framing, keep-alive).

mod connection;
mod object;
mod path;

pub use connection::{
    Asked, Catalog, Connection, Counters, Found, Limits, PIPELINE_BYTES_MAX, Phase, Served, Step,
};
pub use object::{Object, State};
pub use path::image_hash;
