//! The contract between region and rack: the generated code of `muster.capnp`.
// Generated code is not ours to polish; a method without an implementation answers with an error there.
#![allow(clippy::all, clippy::unimplemented)]
capnp::generated_code!(pub mod muster_capnp);
