//! What those get who have not shown a key, or show wrong ones: little memory, little work, and never another's share.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::ThroughRack;
use axum::body::Body;
use bytes::Bytes;
use gate::{Bounds, Room, Source};
use http::{Request, header};
use store::account::NewAccount;
use store::token::Credentials;
use support::{Answer, Region};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

const FORM: &str = "application/x-www-form-urlencoded";
const LOGIN: &str = "/MAAS/accounts/authenticate/";

fn host(last: u8) -> Source {
    Source::host([10, 0, 0, last].into())
}

/// A body of so many octets, and how many of them were read.
fn body_of(octets: u64) -> (Body, Arc<AtomicU64>) {
    let read = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&read);
    let chunks = (0..octets / 1024).map(move |_| {
        count.fetch_add(1024, Ordering::Relaxed);
        Ok::<_, std::io::Error>(Bytes::from_static(&[b'a'; 1024]))
    });
    (Body::from_stream(futures::stream::iter(chunks)), read)
}

async fn post(region: &Region, path: &str, key: Option<&Credentials>, body: Body) -> Answer {
    let mut request = Request::builder()
        .method("POST")
        .uri(path)
        .header(header::CONTENT_TYPE, FORM);
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, region.signature(key));
    }
    region.send(request.body(body).unwrap()).await
}

#[tokio::test]
async fn a_key_is_looked_at_before_any_of_the_body_is_read() {
    let region = Region::start().await;
    let mut wrong = region.admin.clone();
    wrong.token_secret.push('x');
    for path in ["fabrics/", "machines/", "machines/?op=allocate"] {
        let (body, read) = body_of(2 << 20);
        let path = format!("/MAAS/api/2.0/{path}");
        let answer = post(&region, &path, Some(&wrong), body).await;
        answer.refused(401, "Invalid API key");
        assert_eq!(read.load(Ordering::Relaxed), 0, "{path}");
    }
}

#[tokio::test]
async fn little_of_a_body_without_a_key_is_read() {
    let region = Region::start().await;
    for (path, status) in [
        ("/MAAS/api/2.0/fabrics/", 401),
        ("/MAAS/api/2.0/machines/", 413),
        (LOGIN, 413),
    ] {
        let (body, read) = body_of(2 << 20);
        let answer = post(&region, path, None, body).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        let read = read.load(Ordering::Relaxed);
        assert!(read <= 66 << 10, "{path}: {read}");
    }
    let key = region.admin.clone();
    let (body, read) = body_of(1 << 20);
    let answer = post(&region, "/MAAS/api/2.0/fabrics/", Some(&key), body).await;
    assert_eq!(answer.status, 400, "one field with a long name");
    assert_eq!(read.load(Ordering::Relaxed), 1 << 20);
    let places = region.app.places();
    let held = places.iter().filter(|place| place.held > 0);
    assert_eq!(
        (places.len(), held.count()),
        (9, 0),
        "every octet and turn is given back"
    );
}

#[tokio::test]
async fn wrong_keys_of_one_source_are_refused_unlooked_at_and_right_ones_are_not() {
    let region = Region::start().await;
    let whoami = async |key: &Credentials, source: Source| {
        let request = Request::builder()
            .uri("/MAAS/api/2.0/users/?op=whoami")
            .header(header::AUTHORIZATION, region.signature(key))
            .extension(source)
            .body(Body::empty())
            .unwrap();
        region.send(request).await
    };
    let user = region.user.clone();
    assert_eq!(whoami(&user, host(1)).await.status, 200);
    let mut refused = 0;
    for number in 0..200 {
        let mut made_up = region.user.clone();
        made_up.token_key = format!("key{number}");
        let answer = whoami(&made_up, host(1)).await;
        match answer.status.as_u16() {
            429 => refused += 1,
            status => assert_eq!(status, 401, "{}", answer.text),
        }
    }
    // Some more are let through while this runs slowly, never all.
    assert!(refused > 0, "the source's rate is used up");
    assert_eq!(whoami(&user, host(1)).await.status, 200, "known from here");
    assert_eq!(whoami(&region.admin, host(2)).await.status, 200);
}

// ---------------------------------------------------------------- passwords

async fn with_password(region: &Region, username: &str) {
    let password_hash = api::password::hash("hush").unwrap();
    let new = NewAccount {
        username,
        email: "a@example.com",
        password_hash: &password_hash,
        is_admin: false,
    };
    let mut db = region.db.pool.acquire().await.unwrap();
    store::account::create(&mut db, &new).await.unwrap();
}

fn attempt(username: &str, password: &str, source: Source) -> Request<Body> {
    Request::builder()
        .method("POST")
        .uri(LOGIN)
        .header(header::CONTENT_TYPE, FORM)
        .extension(source)
        .body(format!("username={username}&password={password}").into())
        .unwrap()
}

#[tokio::test]
async fn guessers_of_a_password_wait_longer_and_the_owner_does_not() {
    let region = Region::start().await;
    with_password(&region, "ada").await;
    let login = async |password: &str, source| {
        region
            .send(attempt("ada", password, source))
            .await
            .status
            .as_u16()
    };
    assert_eq!(login("hush", host(1)).await, 200);
    let guesses = [
        login("a", host(2)).await,
        login("b", host(2)).await,
        login("c", host(2)).await,
        login("d", host(2)).await,
    ];
    assert_eq!(guesses, [403; 4]);
    let answer = region.send(attempt("ada", "hush", host(2))).await;
    answer.refused(429, "Try again in");
    assert!(!answer.header("retry-after").is_empty());
    assert_eq!(login("hush", host(1)).await, 200, "from where she was");
    assert_eq!(login("hush", host(3)).await, 200, "and from elsewhere");
}

#[tokio::test]
async fn unknown_names_are_answered_as_known_ones() {
    let region = Region::start().await;
    with_password(&region, "ada").await;
    let mut answers = Vec::new();
    for (name, source) in [("ada", host(1)), ("nobody", host(2))] {
        let mut of_name = Vec::new();
        for _ in 0..5 {
            let answer = region.send(attempt(name, "guess", source.clone())).await;
            of_name.push((answer.status, answer.text));
        }
        assert_eq!(of_name[0].0, 403);
        assert_eq!(of_name[4].0, 429);
        answers.push(of_name);
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn many_guessers_at_once_have_two_cores_at_most_and_one_each() {
    let region = Region::start().await;
    with_password(&region, "ada").await;
    let (all, one) = (Source::host([10, 0, 1, 1].into()), host(1));
    region.send(attempt("ada", "hush", one.clone())).await;
    let guesses = (0..12).map(|number| {
        let source = if number < 6 {
            all.clone()
        } else {
            host(number)
        };
        region.send(attempt("ada", "guess", source))
    });
    let guesses = futures::future::join_all(guesses);
    let known = region.send(attempt("ada", "hush", one));
    let (guesses, known) = tokio::join!(guesses, known);
    assert_eq!(known.status, 200, "{}", known.text);
    // Of six at once from one source the fourth finds that three were wrong.
    let of_one: Vec<_> = guesses[..6].iter().map(|g| g.status.as_u16()).collect();
    assert_eq!(
        of_one.iter().filter(|s| **s == 403).count(),
        4,
        "{of_one:?}"
    );
    assert_eq!(
        of_one.iter().filter(|s| **s == 429).count(),
        2,
        "{of_one:?}"
    );
}

#[tokio::test]
async fn passwords_are_not_taken_through_a_rack() {
    let region = Region::start().await;
    with_password(&region, "ada").await;
    let mut request = attempt("ada", "hush", host(1));
    request.extensions_mut().insert(ThroughRack);
    region.send(request).await.refused(403, "through a rack");
}

// ---------------------------------------------------------------- results

#[tokio::test]
async fn outputs_of_results_are_sent_in_pieces_and_only_when_asked_for() {
    let region = Region::start().await;
    let statements = [
        "insert into machine (system_id, hostname) values ('abc123', 'm1')",
        "insert into script_set (machine, type, boot_id)
         values ('abc123', 'commissioning', gen_random_uuid())",
        "insert into script_result (set_id, name, status, output, stdout)
         select id, name, 2, convert_to(repeat('0123456789', 200001), 'UTF8'), 'out'
         from script_set, unnest(array['a', 'b']) as name",
    ];
    for statement in statements {
        sqlx::query(statement)
            .execute(&region.db.pool)
            .await
            .unwrap();
    }
    let path = "nodes/abc123/results/";
    let plain = region.get(path).await;
    assert!(plain.text.len() < 4096, "no outputs: {}", plain.text.len());
    assert_eq!(plain.json()[0]["results"][1]["name"], "b");

    let request = Request::builder()
        .uri(format!("/MAAS/api/2.0/{path}?include_output=1"))
        .header(header::AUTHORIZATION, region.signature(&region.admin))
        .body(Body::empty())
        .unwrap();
    let router = region.router.clone();
    let answer = tower::ServiceExt::oneshot(router, request).await.unwrap();
    let mut frames = answer.into_body().into_data_stream();
    let mut text = Vec::new();
    while let Some(frame) = futures::StreamExt::next(&mut frames).await {
        let frame = frame.unwrap();
        assert!(frame.len() <= 300 << 10, "{}", frame.len());
        text.extend_from_slice(&frame);
    }
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let result = &json[0]["results"][1];
    assert_eq!(result["output"].as_str().unwrap().len(), 2_000_010 / 3 * 4);
    assert_eq!(result["stdout"], "b3V0");
    assert_eq!(result["stderr"], "");

    let download = "nodes/abc123/results/current-commissioning/?op=download&filters=b";
    assert_eq!(region.get(download).await.text.len(), 2_000_010);
    // Their number is bounded, and every place is given back.
    let readers = region.app.places().into_iter();
    let readers = readers.filter(|room| room.name == "result_readers");
    assert_eq!(readers.map(|room| room.held).sum::<u64>(), 0);
}

/// Strangers that come without end displace each other, and no request that a key signed, whatever its method.
#[tokio::test]
async fn a_signed_request_keeps_its_connection_however_many_strangers_come() {
    let region = Region::start().await;
    let room = Room::new(
        "test",
        Bounds {
            total: 4,
            open: 4,
            each: 4,
        },
    );
    // What the answer needs is held back, so that it takes as long as this test likes.
    let mut holder = region.db.pool.begin().await.unwrap();
    sqlx::query("lock table machine in access exclusive mode")
        .execute(&mut *holder)
        .await
        .unwrap();
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let place = room.enter(host(1), 1).unwrap();
    let router = region.router.clone();
    let serving = tokio::spawn(async move {
        let (stop, close) = (CancellationToken::new(), CancellationToken::new());
        gate::http::serve(near, router, place, |_| {}, &stop, &close).await
    });
    let head = format!(
        "GET /MAAS/api/2.0/machines/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: {}\r\n\r\n",
        region.signature(&region.admin)
    );
    far.write_all(head.as_bytes()).await.unwrap();
    let waits = "select count(*) from pg_locks l join pg_database d on d.oid = l.database
                 where not l.granted and d.datname = current_database()";
    while sqlx::query_scalar::<_, i64>(waits)
        .fetch_one(&mut *holder)
        .await
        .unwrap()
        == 0
    {
        assert!(!serving.is_finished(), "displaced before it asked");
        tokio::task::yield_now().await;
    }
    let strangers: Vec<_> = (0..100)
        .map(|n| room.enter(host(10 + n), 1).unwrap())
        .collect();
    assert!(room.numbers().displaced >= 97, "{:?}", room.numbers());
    holder.rollback().await.unwrap();
    let mut answer = String::new();
    far.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    drop(strangers);
    serving.await.unwrap();
}
