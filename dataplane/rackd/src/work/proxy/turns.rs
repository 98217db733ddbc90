//! Requests of one source at the regions: a few at a time, the others in turn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shard::Source;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

type Sources = Arc<Mutex<HashMap<Source, Arc<Semaphore>>>>;

/// Grows with the connections that ask, which are bounded.
pub struct Turns {
    per_source: usize,
    sources: Sources,
}

/// A source's turn, for as long as it is held.
pub struct Turn {
    source: Source,
    sources: Sources,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub fn new(per_source: usize) -> Self {
        Self {
            per_source,
            sources: Sources::default(),
        }
    }

    /// `None`: its turn did not come in time.
    pub async fn take(&self, source: Source, deadline: Instant) -> Option<Turn> {
        let new = || Arc::new(Semaphore::new(self.per_source));
        let semaphore = lock(&self.sources)
            .entry(source)
            .or_insert_with(new)
            .clone();
        // Dropped whether it gets its permit or not: the last one out forgets the source.
        let mut turn = Turn {
            source,
            sources: Arc::clone(&self.sources),
            permit: None,
        };
        let permit = timeout_at(deadline, semaphore.acquire_owned()).await;
        turn.permit = Some(permit.ok()?.ok()?);
        Some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.permit = None;
        let mut sources = lock(&self.sources);
        if sources
            .get(&self.source)
            .is_some_and(|semaphore| Arc::strong_count(semaphore) == 1)
        {
            sources.remove(&self.source);
        }
    }
}

/// Nothing panics while it is held.
fn lock(sources: &Sources) -> MutexGuard<'_, HashMap<Source, Arc<Semaphore>>> {
    sources.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_source_that_asks_much_waits_for_itself_alone() {
        let turns = Turns::new(2);
        let source = |last: u8| Source::from(IpAddr::from([10, 0, 0, last]));
        let soon = || Instant::now() + Duration::from_millis(20);
        let first = turns.take(source(1), soon()).await.unwrap();
        let second = turns.take(source(1), soon()).await.unwrap();
        assert!(turns.take(source(1), soon()).await.is_none());
        assert!(turns.take(source(2), soon()).await.is_some());
        assert_eq!(
            lock(&turns.sources).len(),
            1,
            "who asks nothing is forgotten"
        );
        drop(first);
        assert!(turns.take(source(1), soon()).await.is_some());
        drop(second);
        assert!(lock(&turns.sources).is_empty());
    }
}
