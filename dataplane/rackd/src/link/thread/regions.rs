//! Which regions this thread keeps a link to, and what the rest of the rack is told of that.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use rpc::muster_capnp::session;

use super::{Happening, REPORT_TIME, Thread};
use crate::link::Status;
use crate::link::connect::Endpoint;
use crate::link::{region, wire};
use crate::work::Region;

/// Addresses of regions that are kept a link to.
const ENDPOINTS_MAX: usize = 64;

impl Thread {
    pub(super) fn follow_regions(&mut self) {
        let endpoints = self
            .process_list
            .iter()
            .map(|(endpoint, _)| endpoint.clone())
            .collect();
        self.ports.save_regions(&endpoints);
        self.keep_regions(endpoints);
        self.tell_status();
    }

    /// Processes come and go while a link stays.
    pub(super) fn ask_for_regions(&mut self) {
        let Some(session) = self.session() else {
            return;
        };
        let request = session.regions_request();
        let shared = Rc::clone(&self.shared);
        self.calls.spawn_local(async move {
            let answer = async {
                let answer = request.send().promise.await?;
                wire::regions(answer.get()?.get_regions()?)
            };
            // A region of an earlier version does not know the call; the next hello tells.
            if let Ok(Ok(regions)) = tokio::time::timeout(REPORT_TIME, answer).await
                && !regions.is_empty()
            {
                shared.tell(Happening::Regions(regions));
            }
        });
    }

    /// Keeps a link to each of these and the seeds; lets go of the others unless they are linked.
    pub(super) fn keep_regions(&mut self, mut endpoints: BTreeSet<Endpoint>) {
        endpoints.extend(self.seeds.iter().cloned());
        let linked: BTreeSet<&Endpoint> = self.links.values().map(|link| &link.endpoint).collect();
        self.regions.retain(|endpoint, task| {
            let keep = endpoints.contains(endpoint) || linked.contains(endpoint);
            if !keep {
                task.abort();
            }
            keep
        });
        for endpoint in endpoints {
            if self.regions.len() >= ENDPOINTS_MAX {
                tracing::warn!(
                    limit = ENDPOINTS_MAX,
                    "more regions than this rack links to"
                );
                break;
            }
            let shared = &self.shared;
            self.regions.entry(endpoint).or_insert_with_key(|endpoint| {
                tokio::task::spawn_local(region::keep(Rc::clone(shared), endpoint.clone()))
            });
        }
    }

    /// The oldest link: all that want one region at a time use the same.
    pub(super) fn session(&self) -> Option<&session::Client> {
        self.links.values().next().map(|link| &link.session)
    }

    pub(super) fn tell_status(&mut self) {
        self.mode_told = self.leases.mode();
        let regions: Arc<[Region]> = self
            .links
            .values()
            .map(|link| {
                let port = |(endpoint, port): &(Endpoint, u16)| {
                    (*endpoint == link.endpoint).then_some(*port)
                };
                let own = self.process_list.iter().find_map(port);
                // Dialled by another name than the region's own: all processes use one port by convention.
                let port = own.or_else(|| self.process_list.first().map(|(_, port)| *port));
                Region {
                    host: link.endpoint.host.clone(),
                    port: port.unwrap_or(5251),
                }
            })
            .collect();
        // Without any link the last ones are still the best guess for HTTP.
        if !regions.is_empty() && **self.ports.regions.borrow() != *regions {
            self.ports.regions.send_replace(regions);
        }
        let feed = self.feed.borrow();
        self.ports.status.send_replace(Status {
            rack: self.identity.rack().to_owned(),
            regions: self
                .links
                .values()
                .map(|link| link.endpoint.to_string())
                .collect(),
            mode: self.leases.mode(),
            spooled: self.leases.spooled(),
            watermark: feed.watermark(),
            machines: feed.snapshot().machine_count(),
            leases: self.leases.counters(),
            feed: feed.counters(),
            boots: self.boots.counters,
            archs_displaced: self.archs.displaced(),
            events: self.events.counters,
            shard_mail_dropped: self.shards.dropped,
        });
    }
}
