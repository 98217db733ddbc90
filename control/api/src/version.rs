//! `version/`: what clients look at before anything else.

use serde_json::json;

use crate::dispatch::{Access, Operation, Reply, Request, Resource, json as answer};
use crate::handler;

/// The MAAS release whose API this is. Three plain numbers: python-libmaas parses it strictly.
const MAAS_VERSION: &str = "3.7.3";

/// gomaasapi needs `network-deployment-ubuntu`, python-libmaas `authenticate-api`.
const CAPABILITIES: [&str; 9] = [
    "networks-management",
    "static-ipaddresses",
    "ipv6-deployment-ubuntu",
    "devices-management",
    "storage-deployment-ubuntu",
    "network-deployment-ubuntu",
    "bridging-interface-ubuntu",
    "bridging-automatic-ubuntu",
    "authenticate-api",
];

pub fn resources() -> Vec<Resource> {
    vec![Resource {
        name: "Version",
        path: "version/",
        aliases: &[],
        doc: "The version and capabilities of this region.",
        operations: vec![Operation::new(
            "GET",
            None,
            Access::Anonymous,
            "Read the version and capabilities.",
            handler!(read),
        )],
    }]
}

async fn read(_: Request) -> Reply {
    Ok(answer(&json!({
        "capabilities": CAPABILITIES,
        "version": MAAS_VERSION,
        "subversion": concat!("muster-", env!("CARGO_PKG_VERSION")),
    })))
}
