//! Closes the connections of racks whose certificates stand no longer: at the notification, and by looking now and then.

use std::rc::Rc;
use std::time::Duration;

use crate::counters::add;
use crate::listener::{self, Region};

/// A notification can be lost with its database connection; this look finds what it would have told.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(500);

pub(crate) async fn run(region: Rc<Region>) {
    while !region.cancel.is_cancelled() {
        if let Err(error) = listen(&region).await {
            tracing::warn!(%error, "listening for revocations");
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

/// Ends when the region does, or with the database connection's fault.
async fn listen(region: &Region) -> Result<(), store::StoreError> {
    let options = region.pool.connect_options();
    let mut listener = listener::listen(options, store::rack::REVOKED_CHANNEL).await?;
    look(region, None).await?;
    loop {
        tokio::select! {
            () = region.cancel.cancelled() => return Ok(()),
            told = listener.try_recv() => match told? {
                Some(told) => look(region, Some(told.payload())).await?,
                // The listener has reconnected; something may have been missed.
                None => look(region, None).await?,
            },
            () = tokio::time::sleep(LOOK_EVERY) => look(region, None).await?,
        }
    }
}

async fn look(region: &Region, rack: Option<&str>) -> Result<(), store::StoreError> {
    let registry = region.racks.registry();
    let serials = registry.serials(rack);
    if serials.is_empty() {
        return Ok(());
    }
    let invalid = store::rack::invalid_certificates(&region.pool, &serials).await?;
    if !invalid.is_empty() {
        let closed = registry.close(&invalid);
        add(&region.racks.counters().revoked, closed);
        tracing::info!(
            closed,
            "closed connections of revoked or ended certificates"
        );
    }
    Ok(())
}
