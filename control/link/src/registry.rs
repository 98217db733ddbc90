//! Every authenticated connection of this process, on both rack-facing ports, so that a revocation can close it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::authority::Peer;

#[derive(Default)]
pub(crate) struct Registry {
    next: AtomicU64,
    connections: Mutex<HashMap<u64, Entry>>,
}

struct Entry {
    peer: Peer,
    close: CancellationToken,
}

/// A registered connection; gone from the registry when dropped.
pub(crate) struct Registered {
    registry: Arc<Registry>,
    pub id: u64,
    /// Cancelled when the connection must close.
    pub close: CancellationToken,
}

impl Registry {
    /// Register first and check the certificate after: then a revocation in between is not missed.
    pub fn register(self: &Arc<Self>, peer: Peer) -> Registered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let close = CancellationToken::new();
        self.lock().insert(
            id,
            Entry {
                peer,
                close: close.clone(),
            },
        );
        Registered {
            registry: Arc::clone(self),
            id,
            close,
        }
    }

    /// The serials shown by open connections: of one rack, or of all.
    pub fn serials(&self, rack: Option<&str>) -> Vec<Vec<u8>> {
        let connections = self.lock();
        let of_rack = connections
            .values()
            .filter(|entry| rack.is_none_or(|rack| entry.peer.system_id == rack));
        let mut serials: Vec<_> = of_rack.map(|entry| entry.peer.serial.clone()).collect();
        serials.sort_unstable();
        serials.dedup();
        serials
    }

    /// Closes the connections that showed one of these; says how many.
    pub fn close(&self, serials: &[Vec<u8>]) -> usize {
        let connections = self.lock();
        let mut closed = 0;
        for entry in connections
            .values()
            .filter(|entry| serials.contains(&entry.peer.serial))
        {
            entry.close.cancel();
            closed += 1;
        }
        closed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Entry>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_serials_close_and_the_ended_are_forgotten() {
        let registry = Arc::new(Registry::default());
        let peer = |rack: &str, serial: u8| Peer {
            system_id: rack.into(),
            serial: vec![serial],
        };
        let one = registry.register(peer("aaaaaa", 1));
        let two = registry.register(peer("aaaaaa", 2));
        let other = registry.register(peer("bbbbbb", 3));
        assert_eq!(registry.serials(Some("aaaaaa")), [[1], [2]]);
        assert_eq!(registry.close(&[vec![2], vec![9]]), 1);
        assert!(two.close.is_cancelled() && !one.close.is_cancelled());
        drop((one, two));
        assert_eq!(registry.serials(None), [[3]]);
        assert!(!other.close.is_cancelled());
    }
}
