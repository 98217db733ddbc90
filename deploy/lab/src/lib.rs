//! The lab: a small datacenter on one Linux host, made of real parts.
//!
//! Hosts are network namespaces, machines are QEMU with real firmware, BMCs are OpenIPMI's `ipmi_sim`, the
//! region and the racks are the real programs. Nothing of the host's own network is touched, and two labs can
//! stand side by side.
//!
//! ```text
//!   NAME-region        NAME-rack1 .. N           NAME-client
//!      | mgmt            | mgmt | boot | bmc        | boot
//!   +--+-----------------+------+------+------------+--------- NAME-sw: one bridge per network --+
//!   |  br-mgmt 10.98.0.0/24     br-boot (machines' VLAN)     br-bmc 10.97.0.0/24                  |
//!   |                            |tap1 .. M                   |.101 ..                            |
//!   |                           QEMU 1 .. M  <--- starts ---  ipmi_sim 1 .. M     dnsmasq (RA)    |
//!   +---------------------------------------------------------------------------------------------+
//! ```
//!
//! With one rack it is on all networks. With more, rack 1 serves the machines' VLAN and can't reach the BMCs,
//! rack 2 reaches the BMCs and not that VLAN, the others are on both.
//!
//! It leaves nothing behind, however it ends: see [`reaper`]. It needs root and the Debian packages that
//! `cargo xtask` installs. It does not build programs, and does not decide what a test expects.

mod command;
mod dhcp_host;
mod faults;
pub mod host;
pub mod image;
mod instance;
pub mod kvm;
mod load;
pub mod loaders;
mod machine;
mod model_machine;
mod network;
mod oauth;
pub mod plan;
mod process;
pub mod reaper;
mod region;
pub mod usage;

pub use dhcp_host::{CLIENT_INTERFACE, DhcpHost, RELAY_INTERFACES, RelayHost, ServerPair};
pub use instance::{Lab, LabConfig, Rack, Summary};
pub use load::LOAD_INTERFACE;
pub use machine::Machine;
pub use model_machine::{BmcKind, ModelMachine, ModelSetup, Progress};
pub use oauth::ApiKey;
pub use plan::{BootNetwork, Firmware};
pub use process::Process;
pub use region::{Fault, Region};

/// Why the lab can't run here, if it can't: it needs root for namespaces, taps and mounts.
pub fn missing_rights() -> Option<&'static str> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    Some("the lab needs root: network namespaces, taps and mounts")
}
