//! The contract between region and rack: the generated code of `muster.capnp`.
#![allow(clippy::all)]
capnp::generated_code!(pub mod muster_capnp);
