//! One file per thing an operator names.

pub mod dhcp;
pub mod events;
pub mod image;
pub mod login;
pub mod machine;
pub mod network;
pub mod rack;
