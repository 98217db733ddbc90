//! Transactions that PostgreSQL ended because another was in the way (40P01 deadlock, 40001 serialisation) are done again.
//!
//! Only at a transaction's rim, where the work can be begun anew from its arguments: such an end rolls back everything.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rand::Rng;

/// In all; then the caller hears of it.
pub const TRIES: u32 = 6;
/// Before the second try; doubled for each further one, and some of it left to chance so that two do not meet again.
const PAUSE: Duration = Duration::from_millis(5);

/// An error that may say: begin again.
pub trait Conflict {
    /// The transaction was ended in another's favour; nothing of it was done.
    fn is_conflict(&self) -> bool;
}

static AGAIN: AtomicU64 = AtomicU64::new(0);
static GIVEN_UP: AtomicU64 = AtomicU64::new(0);

/// (name, what it counts, value), of this process.
pub fn counters() -> [(&'static str, &'static str, u64); 2] {
    [
        (
            "done_again",
            "transactions done again after a deadlock",
            AGAIN.load(Relaxed),
        ),
        (
            "conflicts_given_up",
            "transactions that met a deadlock at every try",
            GIVEN_UP.load(Relaxed),
        ),
    ]
}

/// Does `work` until it meets no conflict, within reason.
pub async fn again<T, E, F>(mut work: impl FnMut() -> F) -> Result<T, E>
where
    E: Conflict,
    F: Future<Output = Result<T, E>>,
{
    for tries in 0..TRIES - 1 {
        match work().await {
            Err(error) if error.is_conflict() => {
                AGAIN.fetch_add(1, Relaxed);
                let chance = rand::rng().random();
                tokio::time::sleep(pause(tries, chance)).await;
            }
            done => return done,
        }
    }
    let last = work().await;
    if last.as_ref().is_err_and(Conflict::is_conflict) {
        GIVEN_UP.fetch_add(1, Relaxed);
    }
    last
}

/// Between the whole pause and twice it.
fn pause(tries: u32, chance: u16) -> Duration {
    let pause = PAUSE * 2u32.pow(tries);
    pause + pause * u32::from(chance) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::{StoreError, testing};

    #[derive(Debug, PartialEq)]
    struct Met(bool);

    impl Conflict for Met {
        fn is_conflict(&self) -> bool {
            self.0
        }
    }

    #[test]
    fn pauses_grow_and_are_never_the_same_for_two() {
        let ms = |tries, chance| pause(tries, chance).as_millis();
        assert_eq!((ms(0, 0), ms(0, u16::MAX)), (5, 10));
        assert_eq!((ms(4, 0), ms(4, u16::MAX)), (80, 160));
    }

    #[tokio::test(start_paused = true)]
    async fn a_conflict_is_tried_again_within_reason_and_nothing_else_is() {
        for (fails, error, want, tries) in [
            (0, true, Ok(()), 1),
            (3, true, Ok(()), 4),
            (99, true, Err(Met(true)), TRIES),
            (99, false, Err(Met(false)), 1),
        ] {
            let count = Cell::new(0);
            let done = again(|| {
                count.set(count.get() + 1);
                let failed = count.get() <= fails;
                async move { if failed { Err(Met(error)) } else { Ok(()) } }
            });
            assert_eq!(done.await, want);
            assert_eq!(count.get(), tries);
        }
    }

    /// Two that take the same two rows in opposite orders: PostgreSQL ends one of them.
    #[tokio::test]
    async fn two_transactions_that_wait_for_each_other_are_both_done() {
        let db = testing::database().await;
        sqlx::query("insert into fabric (name) values ('left'), ('right')")
            .execute(&db.pool)
            .await
            .unwrap();
        let (barrier, tries) = (tokio::sync::Barrier::new(2), AtomicUsize::new(0));
        let both = |first: &'static str, second: &'static str| {
            let is_first = Cell::new(true);
            let (db, barrier, tries) = (&db, &barrier, &tries);
            again(move || {
                let meets = is_first.replace(false);
                async move {
                    tries.fetch_add(1, Relaxed);
                    let mut tx = db.pool.begin().await?;
                    let rename =
                        "update fabric set description = description || 'x' where name = $1";
                    sqlx::query(rename).bind(first).execute(&mut *tx).await?;
                    if meets {
                        barrier.wait().await;
                    }
                    sqlx::query(rename).bind(second).execute(&mut *tx).await?;
                    tx.commit().await?;
                    Ok::<_, StoreError>(())
                }
            })
        };
        let (one, other) = tokio::join!(both("left", "right"), both("right", "left"));
        one.unwrap();
        other.unwrap();
        assert_eq!(tries.load(Relaxed), 3);
        let written: Vec<String> =
            sqlx::query_scalar("select description from fabric where name in ('left', 'right')")
                .fetch_all(&db.pool)
                .await
                .unwrap();
        assert_eq!(written, ["xx", "xx"], "each once");
    }
}
