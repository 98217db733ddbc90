//! A region's router on a fresh database, and a client that signs as MAAS's do.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::{App, Attestation};
use axum::Router;
use axum::body::{Body, to_bytes};
use http::{HeaderMap, Request, StatusCode, header};
use library::Library;
use serde_json::Value;
use store::account::NewAccount;
use store::seal::Sealer;
use store::testing::TestDatabase;
use store::token::Credentials;
use tower::ServiceExt;

pub struct Region {
    pub app: App,
    pub router: Router,
    pub admin: Credentials,
    pub user: Credentials,
    nonce: AtomicU64,
    /// Comes with the requests until it is taken away again.
    pub attestation: Option<Attestation>,
    pub db: TestDatabase,
    _folder: tempfile::TempDir,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// Of a success.
    pub fn json(&self) -> Value {
        assert!(self.status.is_success(), "{} {}", self.status, self.text);
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("JSON: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub fn refused(&self, status: u16, part: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert!(self.text.contains(part), "{part:?} in {:?}", self.text);
    }
}

pub fn authorization(key: &Credentials, timestamp: &str, nonce: &str) -> String {
    format!(
        "OAuth realm=\"\", oauth_nonce=\"{nonce}\", oauth_timestamp=\"{timestamp}\", oauth_version=\"1.0\", \
         oauth_signature_method=\"PLAINTEXT\", oauth_consumer_key=\"{}\", oauth_token=\"{}\", \
         oauth_signature=\"%26{}\"",
        key.consumer_key, key.token_key, key.token_secret
    )
}

pub fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

impl Region {
    pub async fn start() -> Self {
        let db = store::testing::database().await;
        let folder = tempfile::tempdir().unwrap();
        let sealer = Arc::new(Sealer::ephemeral());
        let mut keys = Vec::new();
        for (username, is_admin) in [("admin", true), ("user", false)] {
            let mut connection = db.pool.acquire().await.unwrap();
            let new = NewAccount {
                username,
                email: "a@example.com",
                password_hash: "!",
                is_admin,
            };
            let account = store::account::create(&mut connection, &new).await.unwrap();
            let key = store::token::create(&mut connection, &sealer, account.id, "").await;
            keys.push(key.unwrap());
        }
        let library = Library::open(folder.path(), db.pool.clone()).unwrap();
        let app = App::new(db.pool.clone(), sealer, library, link::Racks::default());
        let user = keys.pop().unwrap();
        let admin = keys.pop().unwrap();
        Self {
            router: api::router(app.clone()),
            app,
            admin,
            user,
            nonce: AtomicU64::new(1),
            attestation: None,
            db,
            _folder: folder,
        }
    }

    pub fn signature(&self, key: &Credentials) -> String {
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed);
        authorization(key, &now().to_string(), &nonce.to_string())
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let mut request = request;
        if let Some(attestation) = &self.attestation {
            request.extensions_mut().insert(attestation.clone());
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 64 << 20).await.unwrap();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    pub async fn call(
        &self,
        key: Option<&Credentials>,
        method: &str,
        path: &str,
        content_type: &str,
        body: impl Into<Body>,
    ) -> Answer {
        let path = match path.strip_prefix('/') {
            Some(_) => path.to_owned(),
            None => format!("/MAAS/api/2.0/{path}"),
        };
        let mut request = Request::builder().method(method).uri(path);
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, self.signature(key));
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Some(&self.admin), "GET", path, "", Body::empty())
            .await
    }

    /// With a urlencoded body that is written as it is given.
    pub async fn post(&self, path: &str, body: &str) -> Answer {
        let form = "application/x-www-form-urlencoded";
        self.call(Some(&self.admin), "POST", path, form, body.to_owned())
            .await
    }

    pub async fn put(&self, path: &str, body: &str) -> Answer {
        let form = "application/x-www-form-urlencoded";
        self.call(Some(&self.admin), "PUT", path, form, body.to_owned())
            .await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Some(&self.admin), "DELETE", path, "", Body::empty())
            .await
    }

    /// A rack as its hello leaves it.
    pub async fn rack(&self, hostname: &str, system_id: &str, address: &str) {
        let statements = [
            format!("insert into rack (system_id, hostname) values ('{system_id}', '{hostname}')"),
            format!(
                "insert into rack_interface values ('{system_id}', 'eth0', null, '{{{address}}}')"
            ),
        ];
        for statement in statements {
            sqlx::query(sqlx::AssertSqlSafe(statement))
                .execute(&self.db.pool)
                .await
                .unwrap();
        }
    }
}
