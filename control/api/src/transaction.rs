//! A request's transaction, which knows whether it took effect: a request is only done again when nothing of it has.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{PgConnection, Postgres};
use store::{Conflict, StoreError};

use crate::App;
use crate::error::ApiError;

/// Whether a request has committed something.
#[derive(Clone, Default)]
pub(crate) struct Committed(Arc<AtomicBool>);

impl Committed {
    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Rolled back when dropped.
pub(crate) struct Tx {
    inner: sqlx::Transaction<'static, Postgres>,
    committed: Committed,
}

impl Tx {
    pub fn new(inner: sqlx::Transaction<'static, Postgres>, committed: Committed) -> Self {
        Self { inner, committed }
    }

    pub async fn commit(self) -> Result<(), ApiError> {
        let done = self.inner.commit().await.map_err(StoreError::from);
        // Of a commit whose answer is lost nobody knows; of a conflict it is known that nothing was done.
        if !done.as_ref().is_err_and(StoreError::is_conflict) {
            self.committed.0.store(true, Ordering::Relaxed);
        }
        Ok(done?)
    }
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.inner
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}

/// Does a request, and does it again when another was in its way before it had committed anything.
pub(crate) async fn again<T, F>(app: &App, work: impl Fn(App) -> F) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    let work = || {
        let app = App {
            committed: Committed::default(),
            ..app.clone()
        };
        let (committed, done) = (app.committed.clone(), work(app));
        async move {
            match done.await {
                Err(ApiError::InTheWay) if committed.get() => Err(ApiError::Unavailable(
                    "Other requests change the same, and this one was done in part. Look before you try again.",
                )),
                done => done,
            }
        }
    };
    store::again(work).await
}
