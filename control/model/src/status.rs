//! Machine statuses with MAAS's numbers and names, and which may follow which.

use std::fmt;

/// A machine's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum MachineStatus {
    New = 0,
    Commissioning = 1,
    FailedCommissioning = 2,
    Missing = 3,
    Ready = 4,
    Reserved = 5,
    Deployed = 6,
    Retired = 7,
    Broken = 8,
    Deploying = 9,
    Allocated = 10,
    FailedDeployment = 11,
    Releasing = 12,
    ReleasingFailed = 13,
    DiskErasing = 14,
    FailedDiskErasing = 15,
    RescueMode = 16,
    EnteringRescueMode = 17,
    FailedEnteringRescueMode = 18,
    ExitingRescueMode = 19,
    FailedExitingRescueMode = 20,
    Testing = 21,
    FailedTesting = 22,
}

use MachineStatus as S;

impl MachineStatus {
    /// In the order of their numbers.
    pub const ALL: [MachineStatus; 23] = [
        S::New,
        S::Commissioning,
        S::FailedCommissioning,
        S::Missing,
        S::Ready,
        S::Reserved,
        S::Deployed,
        S::Retired,
        S::Broken,
        S::Deploying,
        S::Allocated,
        S::FailedDeployment,
        S::Releasing,
        S::ReleasingFailed,
        S::DiskErasing,
        S::FailedDiskErasing,
        S::RescueMode,
        S::EnteringRescueMode,
        S::FailedEnteringRescueMode,
        S::ExitingRescueMode,
        S::FailedExitingRescueMode,
        S::Testing,
        S::FailedTesting,
    ];

    pub fn number(self) -> i32 {
        self as i32
    }

    pub fn from_number(number: i32) -> Option<Self> {
        usize::try_from(number)
            .ok()
            .and_then(|index| Self::ALL.get(index))
            .copied()
    }

    /// MAAS's `status_name`.
    pub fn name(self) -> &'static str {
        match self {
            S::New => "New",
            S::Commissioning => "Commissioning",
            S::FailedCommissioning => "Failed commissioning",
            S::Missing => "Missing",
            S::Ready => "Ready",
            S::Reserved => "Reserved",
            S::Deployed => "Deployed",
            S::Retired => "Retired",
            S::Broken => "Broken",
            S::Deploying => "Deploying",
            S::Allocated => "Allocated",
            S::FailedDeployment => "Failed deployment",
            S::Releasing => "Releasing",
            S::ReleasingFailed => "Releasing failed",
            S::DiskErasing => "Disk erasing",
            S::FailedDiskErasing => "Failed disk erasing",
            S::RescueMode => "Rescue mode",
            S::EnteringRescueMode => "Entering rescue mode",
            S::FailedEnteringRescueMode => "Failed to enter rescue mode",
            S::ExitingRescueMode => "Exiting rescue mode",
            S::FailedExitingRescueMode => "Failed to exit rescue mode",
            S::Testing => "Testing",
            S::FailedTesting => "Failed testing",
        }
    }

    /// The word that list filters take (`?status=failed_commissioning`).
    pub fn filter_word(self) -> String {
        self.name().to_ascii_lowercase().replace(' ', "_")
    }

    /// MAAS's `simple_status` group.
    pub fn simple_name(self) -> &'static str {
        match self {
            S::New => "New",
            S::Commissioning => "Commissioning",
            S::Testing => "Testing",
            S::Ready => "Ready",
            S::Allocated => "Allocated",
            S::Deploying => "Deploying",
            S::Deployed => "Deployed",
            S::Releasing | S::DiskErasing => "Releasing",
            S::Broken => "Broken",
            S::RescueMode | S::EnteringRescueMode | S::ExitingRescueMode => "Rescue Mode",
            S::FailedCommissioning
            | S::FailedDeployment
            | S::ReleasingFailed
            | S::FailedDiskErasing
            | S::FailedEnteringRescueMode
            | S::FailedExitingRescueMode
            | S::FailedTesting => "Failed",
            S::Missing | S::Reserved | S::Retired => "Other",
        }
    }

    /// What a machine becomes when it does not get out of this status in time.
    pub fn failed(self) -> Option<Self> {
        match self {
            S::Commissioning => Some(S::FailedCommissioning),
            S::Deploying => Some(S::FailedDeployment),
            S::Releasing => Some(S::ReleasingFailed),
            S::DiskErasing => Some(S::FailedDiskErasing),
            S::EnteringRescueMode => Some(S::FailedEnteringRescueMode),
            S::ExitingRescueMode => Some(S::FailedExitingRescueMode),
            S::Testing => Some(S::FailedTesting),
            _ => None,
        }
    }

    /// Whether a new machine may have this status.
    pub fn may_be_first(self) -> bool {
        matches!(self, S::New | S::Missing | S::Retired)
    }

    pub fn check_move(self, to: MachineStatus) -> Result<(), IllegalMove> {
        if can_move(self, to) {
            Ok(())
        } else {
            Err(IllegalMove { from: self, to })
        }
    }

    fn next(self) -> &'static [MachineStatus] {
        match self {
            S::New => &[
                S::Commissioning,
                S::Testing,
                S::Missing,
                S::Ready,
                S::Retired,
                S::Broken,
                S::EnteringRescueMode,
            ],
            S::Commissioning => &[
                S::FailedCommissioning,
                S::Ready,
                S::Retired,
                S::Missing,
                S::New,
                S::Broken,
                S::Testing,
            ],
            S::FailedCommissioning => &[
                S::Commissioning,
                S::Missing,
                S::Retired,
                S::Broken,
                S::EnteringRescueMode,
                S::Testing,
            ],
            S::Ready => &[
                S::EnteringRescueMode,
                S::Commissioning,
                S::Allocated,
                S::Reserved,
                S::Retired,
                S::Missing,
                S::Broken,
                S::Testing,
            ],
            S::Reserved => &[
                S::Ready,
                S::Allocated,
                S::Retired,
                S::Missing,
                S::Broken,
                S::DiskErasing,
                S::Releasing,
                S::EnteringRescueMode,
                S::Testing,
            ],
            S::Allocated => &[
                S::Ready,
                S::Retired,
                S::Missing,
                S::Broken,
                S::Deploying,
                S::DiskErasing,
                S::Releasing,
                S::EnteringRescueMode,
                S::Testing,
            ],
            S::Deploying => &[
                S::Allocated,
                S::Missing,
                S::Broken,
                S::FailedDeployment,
                S::Deployed,
                S::Ready,
                S::DiskErasing,
                S::Releasing,
            ],
            S::FailedDeployment | S::Deployed => &[
                S::Allocated,
                S::Missing,
                S::Broken,
                S::Ready,
                S::DiskErasing,
                S::Releasing,
                S::EnteringRescueMode,
                S::Testing,
            ],
            S::Releasing => &[
                S::New,
                S::Allocated,
                S::Reserved,
                S::Deployed,
                S::Ready,
                S::Broken,
                S::Missing,
                S::FailedDeployment,
                S::FailedDiskErasing,
                S::ReleasingFailed,
            ],
            S::ReleasingFailed => &[
                S::Releasing,
                S::DiskErasing,
                S::Ready,
                S::Broken,
                S::Testing,
            ],
            S::DiskErasing => &[
                S::Broken,
                S::DiskErasing,
                S::FailedDiskErasing,
                S::Ready,
                S::Releasing,
            ],
            S::FailedDiskErasing => &[
                S::DiskErasing,
                S::Releasing,
                S::Broken,
                S::Allocated,
                S::Ready,
                S::EnteringRescueMode,
                S::Testing,
            ],
            S::Broken => &[
                S::Commissioning,
                S::Ready,
                S::DiskErasing,
                S::Releasing,
                S::EnteringRescueMode,
                S::Testing,
                S::Deployed,
            ],
            S::Missing => &[
                S::New,
                S::Ready,
                S::Allocated,
                S::Commissioning,
                S::Broken,
                S::EnteringRescueMode,
                S::Testing,
            ],
            S::Retired => &[
                S::New,
                S::Ready,
                S::Missing,
                S::Broken,
                S::EnteringRescueMode,
                S::Testing,
            ],
            S::EnteringRescueMode => &[
                S::Ready,
                S::Broken,
                S::Deployed,
                S::RescueMode,
                S::FailedEnteringRescueMode,
                S::ExitingRescueMode,
            ],
            S::FailedEnteringRescueMode => &[
                S::Broken,
                S::EnteringRescueMode,
                S::ExitingRescueMode,
                S::Testing,
            ],
            S::RescueMode => &[S::Broken, S::ExitingRescueMode, S::Testing],
            S::ExitingRescueMode => &[
                S::New,
                S::Broken,
                S::Ready,
                S::Reserved,
                S::Allocated,
                S::Deployed,
                S::Missing,
                S::Retired,
                S::RescueMode,
                S::FailedCommissioning,
                S::FailedDeployment,
                S::ReleasingFailed,
                S::FailedDiskErasing,
                S::FailedEnteringRescueMode,
                S::FailedExitingRescueMode,
                S::FailedTesting,
            ],
            S::FailedExitingRescueMode => &[S::Broken, S::ExitingRescueMode, S::Testing],
            S::Testing => &[
                S::Broken,
                S::New,
                S::Ready,
                S::Reserved,
                S::Allocated,
                S::Deployed,
                S::Commissioning,
                S::FailedDeployment,
                S::Missing,
                S::Retired,
                S::ReleasingFailed,
                S::FailedDiskErasing,
                S::FailedEnteringRescueMode,
                S::FailedExitingRescueMode,
                S::FailedTesting,
            ],
            S::FailedTesting => &[
                S::Commissioning,
                S::Broken,
                S::Missing,
                S::EnteringRescueMode,
                S::Testing,
                S::Ready,
                S::Deployed,
            ],
        }
    }
}

/// Whether a machine may go from one status to another. Staying is not a move.
pub fn can_move(from: MachineStatus, to: MachineStatus) -> bool {
    from.next().contains(&to)
}

impl fmt::Display for MachineStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A transition that the lifecycle does not have (HTTP 409).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid transition: {from} -> {to}.")]
pub struct IllegalMove {
    pub from: MachineStatus,
    pub to: MachineStatus,
}

/// MAAS's node types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum NodeType {
    Machine = 0,
    Device = 1,
    Rack = 2,
    Region = 3,
    RegionAndRack = 4,
}

impl NodeType {
    pub fn number(self) -> i32 {
        self as i32
    }

    pub fn name(self) -> &'static str {
        match self {
            NodeType::Machine => "Machine",
            NodeType::Device => "Device",
            NodeType::Rack => "Rack controller",
            NodeType::Region => "Region controller",
            NodeType::RegionAndRack => "Region and rack controller",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for (number, status) in (0..).zip(MachineStatus::ALL) {
            assert_eq!(status.number(), number);
            assert_eq!(MachineStatus::from_number(number), Some(status));
        }
        assert_eq!(MachineStatus::from_number(23), None);
        assert_eq!(MachineStatus::from_number(-1), None);
    }

    #[test]
    fn the_lifecycle_allows_what_it_should() {
        let cases = [
            (S::New, S::Commissioning, true),
            (S::Commissioning, S::Ready, true),
            (S::Commissioning, S::New, true),
            (S::Commissioning, S::FailedCommissioning, true),
            (S::FailedCommissioning, S::Commissioning, true),
            (S::Ready, S::Commissioning, true),
            (S::Broken, S::Commissioning, true),
            (S::DiskErasing, S::DiskErasing, true),
            (S::New, S::New, false),
            (S::New, S::Deployed, false),
            (S::New, S::Allocated, false),
            (S::Commissioning, S::Commissioning, false),
            (S::FailedCommissioning, S::Ready, false),
            (S::Deployed, S::Commissioning, false),
            (S::Allocated, S::Commissioning, false),
            (S::Deploying, S::Commissioning, false),
            (S::Ready, S::New, false),
            (S::ReleasingFailed, S::Deployed, false),
        ];
        for (from, to, want) in cases {
            assert_eq!(can_move(from, to), want, "{from} -> {to}");
            assert_eq!(from.check_move(to).is_ok(), want, "{from} -> {to}");
        }
    }

    /// The whole table as counts, so that an accidental edit of any row shows.
    #[test]
    fn each_row_has_its_length_and_no_repeats() {
        let want = [
            7, 7, 6, 7, 8, 9, 8, 6, 7, 8, 9, 8, 10, 5, 5, 7, 3, 6, 4, 16, 3, 15, 7,
        ];
        for (status, want) in MachineStatus::ALL.into_iter().zip(want) {
            let next = status.next();
            assert_eq!(next.len(), want, "{status}");
            for (index, to) in next.iter().enumerate() {
                assert!(!next[..index].contains(to), "{status} -> {to} twice");
            }
        }
    }

    #[test]
    fn every_monitored_status_can_fail() {
        for status in MachineStatus::ALL {
            if let Some(failed) = status.failed() {
                assert!(can_move(status, failed), "{status} -> {failed}");
            }
        }
    }

    #[test]
    fn names_are_the_ones_clients_compare() {
        assert_eq!(S::ReleasingFailed.name(), "Releasing failed");
        assert_eq!(
            S::FailedEnteringRescueMode.name(),
            "Failed to enter rescue mode"
        );
        assert_eq!(S::FailedCommissioning.filter_word(), "failed_commissioning");
        assert_eq!(
            IllegalMove {
                from: S::Deployed,
                to: S::Commissioning
            }
            .to_string(),
            "Invalid transition: Deployed -> Commissioning."
        );
    }
}
