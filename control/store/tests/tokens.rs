//! API keys, machine tokens and nonces.

use store::account::{self, NewAccount};
use store::nonce::{self, Use};
use store::seal::Sealer;
use store::{StoreError, token};
use uuid::Uuid;

async fn account(db: &mut sqlx::PgConnection) -> i32 {
    let new = NewAccount {
        username: "ada",
        email: "",
        password_hash: "!",
        is_admin: false,
    };
    account::create(db, &new).await.unwrap().id
}

#[tokio::test]
async fn a_key_opens_with_its_region_key_only() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    let (sealer, other) = (Sealer::ephemeral(), Sealer::ephemeral());
    let id = account(&mut db).await;
    let made = token::create(&mut db, &sealer, id, "ci").await.unwrap();
    assert!(!format!("{made:?}").contains(&made.token_secret));
    let found = token::lookup(&mut db, &sealer, &made.token_key)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.token_secret, made.token_secret.as_bytes());
    assert_eq!(
        (found.account.id, found.consumer_key),
        (id, made.consumer_key.clone())
    );
    assert!(matches!(
        token::lookup(&mut db, &other, &made.token_key).await,
        Err(StoreError::Sealed)
    ));
    assert!(
        token::lookup(&mut db, &sealer, "nobody")
            .await
            .unwrap()
            .is_none()
    );

    // A sealed secret that was copied to another key's row does not open there.
    let second = token::create(&mut db, &sealer, id, "").await.unwrap();
    sqlx::query(
        "update api_token t set secret_sealed = o.secret_sealed from api_token o
         where t.token_key = $1 and o.token_key = $2",
    )
    .bind(&second.token_key)
    .bind(&made.token_key)
    .execute(&mut *db)
    .await
    .unwrap();
    assert!(
        token::lookup(&mut db, &sealer, &second.token_key)
            .await
            .is_err()
    );
    assert!(token::delete(&mut db, id, &second.token_key).await.unwrap());
    assert!(!token::delete(&mut db, id, &second.token_key).await.unwrap());

    let again = token::find_or_create(&mut db, &sealer, id, "ci")
        .await
        .unwrap();
    assert_eq!(again, made);
    assert!(
        token::rename(&mut db, id, &made.token_key, "cd")
            .await
            .unwrap()
    );
    assert_ne!(
        token::find_or_create(&mut db, &sealer, id, "ci")
            .await
            .unwrap(),
        made
    );
    account::delete(&mut db, "ada").await.unwrap();
    assert!(
        token::lookup(&mut db, &sealer, &made.token_key)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_machine_token_is_of_one_boot() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    sqlx::query("insert into machine (system_id, hostname) values ('abc123', 'one')")
        .execute(&mut *db)
        .await
        .unwrap();
    let machine = "abc123".parse().unwrap();
    let (mac, address) = (
        "52:54:00:00:00:01".parse().unwrap(),
        "10.0.0.5".parse().unwrap(),
    );
    let (boot, next_boot) = (Uuid::new_v4(), Uuid::new_v4());
    let made = token::mint_machine(&mut db, &machine, boot, mac, address)
        .await
        .unwrap();
    let found = token::lookup_machine(&mut db, &made.token_key)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (found.machine, found.boot_id, found.mac, found.address),
        (machine, boot, mac, address)
    );
    assert!(found.secret_matches(&made.token_secret));
    assert!(!found.secret_matches("") && !found.secret_matches(&made.token_secret[1..]));
    assert!(!format!("{found:?}").contains(&made.token_secret));

    // The same boot may ask again; another boot ends both.
    let again = token::mint_machine(&mut db, &machine, boot, mac, address)
        .await
        .unwrap();
    assert!(
        token::lookup_machine(&mut db, &made.token_key)
            .await
            .unwrap()
            .is_some()
    );
    let next = token::mint_machine(&mut db, &machine, next_boot, mac, address)
        .await
        .unwrap();
    for key in [&made.token_key, &again.token_key] {
        assert!(token::lookup_machine(&mut db, key).await.unwrap().is_none());
    }
    assert_eq!(token::revoke_machine(&mut db, &machine).await.unwrap(), 1);
    assert!(
        token::lookup_machine(&mut db, &next.token_key)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(token::forget_revoked(&mut db).await.unwrap(), 0);
    sqlx::query("update machine_token set revoked = now() - interval '2 days'")
        .execute(&mut *db)
        .await
        .unwrap();
    assert_eq!(token::forget_revoked(&mut db).await.unwrap(), 3);
}

#[tokio::test]
async fn nonces_are_remembered_as_long_as_they_matter() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    let db = &mut *db;
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    assert_eq!(
        nonce::remember(db, "x", "a", "1", now).await.unwrap(),
        Use::Fresh
    );
    assert_eq!(
        nonce::remember(db, "x", "a", "1", now).await.unwrap(),
        Use::Again
    );
    assert_eq!(
        nonce::remember(db, "y", "b", "1", now).await.unwrap(),
        Use::Fresh
    );
    sqlx::query(
        "update oauth_nonce set seen = now() - interval '901 seconds' where token_key = 'a'",
    )
    .execute(&mut *db)
    .await
    .unwrap();
    let cleaned = nonce::clean(db, nonce::BOUNDS).await.unwrap().unwrap();
    assert_eq!(
        (
            cleaned.deleted,
            cleaned.held,
            cleaned.owners,
            cleaned.raised
        ),
        (1, 1, 1, 0)
    );
    assert_eq!(
        nonce::remember(db, "x", "a", "1", now).await.unwrap(),
        Use::Fresh
    );
    assert_eq!(
        nonce::remember(db, "y", "b", "1", now).await.unwrap(),
        Use::Again
    );
}

/// Neither by its own flood nor by another's does a nonce that was used become one that may be.
#[tokio::test]
async fn an_owner_that_signs_without_end_is_bounded_replays_nothing_and_refuses_nobody_else() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    let db = &mut *db;
    let bounds = nonce::Bounds {
        each: 10,
        total: 1000,
    };
    let start = time::OffsetDateTime::now_utc().unix_timestamp() - 100;
    for owner in ["quiet", "greedy"] {
        let used = nonce::remember(db, owner, owner, "first", start).await;
        assert_eq!(used.unwrap(), Use::Fresh);
    }
    let mut held = 0;
    for round in 0..6 {
        for second in 0..10 {
            let at = start + 1 + round * 10 + second;
            // Of two keys: the share is the owner's.
            for key in ["greedy", "another key"] {
                let used = nonce::remember(db, "greedy", key, &format!("{at}"), at).await;
                assert_eq!(used.unwrap(), Use::Fresh, "its clock is right, it goes on");
            }
        }
        held = nonce::clean(db, bounds).await.unwrap().unwrap().held;
        // Everything that was ever used is refused, whether it is still remembered or below the floor.
        for at in start + 1..start + 1 + round * 10 {
            let again = nonce::remember(db, "greedy", "greedy", &format!("{at}"), at).await;
            assert_ne!(again.unwrap(), Use::Fresh, "{at}");
        }
        let again = nonce::remember(db, "greedy", "greedy", "first", start).await;
        assert_ne!(again.unwrap(), Use::Fresh);
        sqlx::query("update oauth_floor set raised = raised - interval '41 seconds'")
            .execute(&mut *db)
            .await
            .unwrap();
    }
    // Its share, and what came until two clean-ups later.
    assert!(held <= 10 + 2 * 20 + 1, "{held}");
    let again = nonce::remember(db, "greedy", "greedy", "new", start).await;
    assert_eq!(again.unwrap(), Use::BelowFloor);
    let others = nonce::remember(db, "quiet", "quiet", "first", start).await;
    assert_eq!(others.unwrap(), Use::Again, "remembered as before");
    let others = nonce::remember(db, "quiet", "quiet", "old but good", start - 50).await;
    assert_eq!(others.unwrap(), Use::Fresh);
}

/// A statement that began before the floor was there may still be under way.
#[tokio::test]
async fn nothing_below_a_new_floor_is_forgotten_at_once() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    let db = &mut *db;
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    for number in 0..20 {
        let used = nonce::remember(db, "x", "a", &format!("{number}"), now + number).await;
        assert_eq!(used.unwrap(), Use::Fresh);
    }
    let bounds = nonce::Bounds { each: 5, total: 5 };
    for _ in 0..3 {
        let cleaned = nonce::clean(db, bounds).await.unwrap().unwrap();
        assert_eq!((cleaned.held, cleaned.deleted), (20, 0));
    }
    sqlx::query("update oauth_floor set raised = raised - interval '41 seconds'")
        .execute(&mut *db)
        .await
        .unwrap();
    let cleaned = nonce::clean(db, bounds).await.unwrap().unwrap();
    assert_eq!((cleaned.held, cleaned.deleted), (5, 15));
}
