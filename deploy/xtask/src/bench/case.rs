//! What `cargo xtask bench dhcp` asks of every server: pools, clients, reservations, loss and the way there.

use serde::Serialize;

use super::perfdhcp::Path4;

const AVALANCHE_CLIENTS: u32 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    Steady,
    Avalanche,
}

/// What is asked of every server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Case {
    pub name: &'static str,
    /// Addresses of the dynamic range.
    pub pool: u32,
    pub clients: u32,
    /// Three clients in ten have an address reserved.
    pub reserved: bool,
    /// Of 100 messages, each way.
    pub lost: u8,
    pub path: Path4,
    pub shape: Shape,
}

pub const CASES: [Case; 7] = {
    let large = Case {
        name: "64k",
        pool: 65_536,
        clients: 60_000,
        reserved: false,
        lost: 0,
        path: Path4::Local,
        shape: Shape::Steady,
    };
    let small = Case {
        name: "2k",
        pool: 2_048,
        clients: 1_900,
        ..large
    };
    let avalanche = Case {
        name: "avalanche",
        clients: AVALANCHE_CLIENTS,
        shape: Shape::Avalanche,
        ..large
    };
    [
        large,
        small,
        Case {
            name: "64k-reserved",
            reserved: true,
            ..large
        },
        Case {
            name: "2k-reserved",
            reserved: true,
            ..small
        },
        Case {
            name: "64k-relay",
            path: Path4::Relay,
            ..large
        },
        avalanche,
        Case {
            name: "avalanche-lossy",
            lost: 1,
            ..avalanche
        },
    ]
};
