//! The contract between region and rack: the generated code of `muster.capnp`.
// Generated code is not ours to polish; a method without an implementation answers with an error there.
#![allow(clippy::all, clippy::unimplemented)]
capnp::generated_code!(pub mod muster_capnp);

/// The texts of refusals that a rack must tell apart from faults: trying again does not help.
pub mod refusal {
    /// `hello` without a client certificate.
    pub const NOT_ENROLLED: &str = "not enrolled";
    /// The certificate, or the rack, was revoked.
    pub const REVOKED: &str = "revoked";
    /// Begins the refusal of an enrolment; the reason follows.
    pub const ENROLMENT: &str = "enrolment refused: ";
}
