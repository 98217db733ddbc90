//! Our own code on a host of the lab: a thread that stands in its network namespace.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` with the network of `namespace`; returns what it returns. The sockets it makes belong there for good.
pub fn on_network_of<T: Send>(
    namespace: &str,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let path = format!("/run/netns/{namespace}");
    let link = File::open(&path).with_context(|| format!("opening {path}"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("entering {path}"))?;
            work()
        });
        thread
            .join()
            .map_err(|_| anyhow!("the thread on {namespace} panicked"))?
    })
}
