//! What a machine that asks for boot files gets, by its status.

use crate::{MachineStatus, NodeType};

/// The boot that a rack serves (MAAS's purpose words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// From its own disk.
    Local,
    /// The ephemeral system.
    Commissioning,
    /// The ephemeral system, for a machine that is not known yet.
    Enlist,
    /// The installer.
    Xinstall,
    /// A config that switches the machine off.
    Poweroff,
}

impl Purpose {
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::Local => "local",
            Purpose::Commissioning => "commissioning",
            Purpose::Enlist => "enlist",
            Purpose::Xinstall => "xinstall",
            Purpose::Poweroff => "poweroff",
        }
    }
}

/// The purpose for a known node. `netboot`: the installer has not finished yet.
///
/// | node, status                                                                      | purpose       |
/// |-----------------------------------------------------------------------------------|---------------|
/// | device, New                                                                       | local         |
/// | New, Commissioning, Disk erasing, Entering rescue, Rescue mode, Releasing, Testing | commissioning |
/// | Deploying, netboot                                                                | xinstall      |
/// | Deploying, not netboot; Deployed; any node but a machine                          | local         |
/// | anything else                                                                     | poweroff      |
pub fn boot_purpose(status: MachineStatus, node_type: NodeType, netboot: bool) -> Purpose {
    use MachineStatus as S;
    if node_type == NodeType::Device && status == S::New {
        return Purpose::Local;
    }
    match status {
        S::New
        | S::Commissioning
        | S::DiskErasing
        | S::EnteringRescueMode
        | S::RescueMode
        | S::Releasing
        | S::Testing => Purpose::Commissioning,
        S::Deploying if netboot => Purpose::Xinstall,
        S::Deploying | S::Deployed => Purpose::Local,
        _ if node_type != NodeType::Machine => Purpose::Local,
        _ => Purpose::Poweroff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purpose_follows_the_status() {
        use MachineStatus as S;
        let cases = [
            ("device", S::New, NodeType::Device, true, Purpose::Local),
            (
                "new",
                S::New,
                NodeType::Machine,
                true,
                Purpose::Commissioning,
            ),
            (
                "commissioning",
                S::Commissioning,
                NodeType::Machine,
                false,
                Purpose::Commissioning,
            ),
            (
                "releasing",
                S::Releasing,
                NodeType::Machine,
                true,
                Purpose::Commissioning,
            ),
            (
                "installing",
                S::Deploying,
                NodeType::Machine,
                true,
                Purpose::Xinstall,
            ),
            (
                "installed",
                S::Deploying,
                NodeType::Machine,
                false,
                Purpose::Local,
            ),
            (
                "deployed",
                S::Deployed,
                NodeType::Machine,
                true,
                Purpose::Local,
            ),
            (
                "ready",
                S::Ready,
                NodeType::Machine,
                true,
                Purpose::Poweroff,
            ),
            (
                "failed",
                S::FailedCommissioning,
                NodeType::Machine,
                true,
                Purpose::Poweroff,
            ),
            (
                "broken",
                S::Broken,
                NodeType::Machine,
                true,
                Purpose::Poweroff,
            ),
            (
                "rack controller",
                S::Ready,
                NodeType::Rack,
                true,
                Purpose::Local,
            ),
        ];
        for (case, status, node_type, netboot, want) in cases {
            assert_eq!(boot_purpose(status, node_type, netboot), want, "{case}");
        }
    }
}
