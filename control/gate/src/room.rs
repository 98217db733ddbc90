//! [`Places`] that tasks share: whoever loses a place is told at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::places::{Bounds, Full, Places};
use crate::source::Source;

/// A shared set of places, with the name that it has on the metrics page.
pub struct Room {
    name: &'static str,
    inner: Mutex<Inner>,
    left: Notify,
    entered: AtomicU64,
    displaced: AtomicU64,
    refused_source: AtomicU64,
    refused_all: AtomicU64,
}

struct Inner {
    places: Places<Source>,
    displaced: HashMap<u64, CancellationToken>,
}

/// What a room counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub name: &'static str,
    pub held: u64,
    pub open: u64,
    pub sources: u64,
    pub total: u64,
    pub entered: u64,
    pub displaced: u64,
    pub refused_source: u64,
    pub refused_all: u64,
}

/// A held place; given back when dropped.
pub struct Place {
    room: Arc<Room>,
    id: u64,
    displaced: CancellationToken,
}

impl Room {
    pub fn new(name: &'static str, bounds: Bounds) -> Arc<Self> {
        let inner = Inner {
            places: Places::new(bounds),
            displaced: HashMap::new(),
        };
        Arc::new(Self {
            name,
            inner: Mutex::new(inner),
            left: Notify::new(),
            entered: AtomicU64::new(0),
            displaced: AtomicU64::new(0),
            refused_source: AtomicU64::new(0),
            refused_all: AtomicU64::new(0),
        })
    }

    /// An open place of this weight.
    pub fn enter(self: &Arc<Self>, source: Source, weight: u64) -> Result<Place, Full> {
        let place = self.try_enter(source, weight, false);
        self.count(place.as_ref().err());
        place
    }

    /// A firm place; waits for it as long as `limit` when none is free.
    pub async fn wait(
        self: &Arc<Self>,
        source: Source,
        weight: u64,
        limit: Duration,
    ) -> Result<Place, Full> {
        let turn = async {
            loop {
                let left = self.left.notified();
                let mut left = std::pin::pin!(left);
                left.as_mut().enable();
                match self.try_enter(source.clone(), weight, true) {
                    Ok(place) => return place,
                    Err(_) => left.await,
                }
            }
        };
        let place = match tokio::time::timeout(limit, turn).await {
            Ok(place) => Ok(place),
            Err(_) => self.try_enter(source.clone(), weight, true),
        };
        self.count(place.as_ref().err());
        place
    }

    pub fn numbers(&self) -> Numbers {
        let inner = self.lock();
        let (held, open, sources) = inner.places.held();
        Numbers {
            name: self.name,
            held,
            open,
            sources: sources as u64,
            total: inner.places.bounds().total,
            entered: self.entered.load(Relaxed),
            displaced: self.displaced.load(Relaxed),
            refused_source: self.refused_source.load(Relaxed),
            refused_all: self.refused_all.load(Relaxed),
        }
    }

    fn try_enter(self: &Arc<Self>, source: Source, weight: u64, firm: bool) -> Result<Place, Full> {
        let mut inner = self.lock();
        let (id, displaced) = inner.places.enter(source, weight)?;
        if firm {
            inner.places.firm(id);
        }
        self.tell(&mut inner, &displaced);
        let token = CancellationToken::new();
        inner.displaced.insert(id, token.clone());
        Ok(Place {
            room: Arc::clone(self),
            id,
            displaced: token,
        })
    }

    fn tell(&self, inner: &mut Inner, displaced: &[u64]) {
        for id in displaced {
            if let Some(token) = inner.displaced.remove(id) {
                token.cancel();
            }
        }
        self.displaced.fetch_add(displaced.len() as u64, Relaxed);
    }

    fn count(&self, refused: Option<&Full>) {
        let counter = match refused {
            None => &self.entered,
            Some(Full::Source) => &self.refused_source,
            Some(Full::All) => &self.refused_all,
        };
        counter.fetch_add(1, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The holder has shown what it is: nobody takes its place.
    pub fn firm(&self) {
        self.room.lock().places.firm(self.id);
    }

    /// The place may be taken away again, the youngest of those.
    pub fn open(&self) {
        self.room.lock().places.open(self.id);
    }

    pub fn grow(&self, weight: u64) -> Result<(), Full> {
        let mut inner = self.room.lock();
        match inner.places.grow(self.id, weight) {
            Ok(displaced) => {
                self.room.tell(&mut inner, &displaced);
                Ok(())
            }
            Err(full) => {
                drop(inner);
                self.room.count(Some(&full));
                Err(full)
            }
        }
    }

    /// Done when the place was taken away.
    pub async fn displaced(&self) {
        self.displaced.cancelled().await;
    }

    pub fn is_displaced(&self) -> bool {
        self.displaced.is_cancelled()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.room.lock();
        inner.places.leave(self.id);
        inner.displaced.remove(&self.id);
        drop(inner);
        self.room.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(last: u8) -> Source {
        Source::host([10, 0, 0, last].into())
    }

    #[tokio::test]
    async fn the_displaced_is_told_and_what_happened_is_counted() {
        let bounds = Bounds {
            total: 2,
            open: 2,
            each: 1,
        };
        let room = Room::new("test", bounds);
        let one = room.enter(host(1), 1).unwrap();
        let two = room.enter(host(2), 1).unwrap();
        two.firm();
        let three = room.enter(host(3), 1).unwrap();
        one.displaced().await;
        drop(one);
        three.firm();
        assert_eq!(room.enter(host(4), 1).err(), Some(Full::All));
        assert_eq!(room.enter(host(3), 1).err(), Some(Full::Source));
        let numbers = room.numbers();
        assert_eq!((numbers.held, numbers.displaced), (2, 1));
        assert_eq!((numbers.refused_source, numbers.refused_all), (1, 1));
        assert_eq!(numbers.entered, 3);
    }

    #[tokio::test]
    async fn a_waiter_gets_the_place_that_is_given_back() {
        let bounds = Bounds {
            total: 1,
            open: 1,
            each: 1,
        };
        let room = Room::new("test", bounds);
        let held = room.enter(host(1), 1).unwrap();
        held.firm();
        let limit = Duration::from_secs(60);
        let waiting = tokio::spawn({
            let room = Arc::clone(&room);
            async move { room.wait(host(2), 1, limit).await.is_ok() }
        });
        tokio::task::yield_now().await;
        drop(held);
        assert!(waiting.await.unwrap());
        let held = room.enter(host(1), 1).unwrap();
        held.firm();
        let none = room.wait(host(2), 1, Duration::from_millis(1)).await;
        assert_eq!(none.err(), Some(Full::All));
    }
}
