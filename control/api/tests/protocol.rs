//! What every request meets before its handler: paths, operations, signatures, bodies, errors.

mod support;

use axum::body::Body;
use http::{Request, header};
use support::{Region, authorization, now};

const FORM: &str = "application/x-www-form-urlencoded";

#[tokio::test]
async fn anonymous_answers_are_the_ones_clients_look_at_first() {
    let region = Region::start().await;
    for path in ["/MAAS/api/version/", "/MAAS/api/version"] {
        let answer = region.call(None, "GET", path, "", "").await;
        assert_eq!(
            (answer.text.as_str(), answer.header("content-type")),
            ("2.0", "text/plain; charset=utf-8")
        );
    }
    let version = region.call(None, "GET", "version/", "", "").await;
    let json = version.json();
    assert_eq!(json["version"].as_str().unwrap().split('.').count(), 3);
    let capabilities = json["capabilities"].as_array().unwrap();
    assert!(capabilities.iter().any(|one| one == "authenticate-api"));
    assert!(
        capabilities
            .iter()
            .any(|one| one == "network-deployment-ubuntu")
    );
    assert_eq!(
        version.header("content-type"),
        "application/json; charset=utf-8"
    );
    assert!(version.header("date").ends_with(" GMT"));

    let describe = region.call(None, "GET", "describe/", "", "").await;
    assert_eq!(describe.header("content-type"), "application/json");
    let json = describe.json();
    let hash = json["hash"].as_str().unwrap();
    assert_eq!(hash.len(), 40);
    assert_eq!(describe.header("x-maas-api-hash"), hash);
    assert_eq!(version.header("x-maas-api-hash"), hash);
    region
        .call(None, "GET", "/MAAS/api/1.0/nodes/", "", "")
        .await
        .refused(410, "no longer");
}

#[tokio::test]
async fn describe_has_what_clients_build_their_commands_from() {
    let region = Region::start().await;
    let request = Request::builder()
        .uri("/MAAS/api/2.0/describe")
        .header("host", "region.example:5240")
        .body(Body::empty())
        .unwrap();
    let json = region.send(request).await.json();
    let resources = json["resources"].as_array().unwrap();
    let names: Vec<&str> = resources
        .iter()
        .map(|r| r["name"].as_str().unwrap())
        .collect();
    assert!(names.is_sorted());
    let machine = resources
        .iter()
        .find(|r| r["name"] == "MachineHandler")
        .unwrap();
    assert!(machine["anon"].is_null());
    let auth = &machine["auth"];
    assert_eq!(auth["params"], serde_json::json!(["system_id"]));
    assert_eq!(auth["path"], "/MAAS/api/2.0/machines/{system_id}/");
    assert_eq!(
        auth["uri"],
        "http://region.example:5240/MAAS/api/2.0/machines/{system_id}/"
    );
    let actions = auth["actions"].as_array().unwrap();
    let action = |name: &str| {
        actions
            .iter()
            .find(|action| action["name"] == name)
            .unwrap()
    };
    assert_eq!(action("read")["restful"], true);
    assert_eq!(
        (&action("commission")["op"], &action("commission")["method"]),
        (&"commission".into(), &"POST".into())
    );
    let machines = resources
        .iter()
        .find(|r| r["name"] == "MachinesHandler")
        .unwrap();
    assert_eq!(machines["anon"]["name"], "AnonMachinesHandler");
    assert!(
        json["handlers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|handler| handler["doc"].is_string())
    );
}

#[tokio::test]
async fn a_signature_counts_once_and_only_when_all_of_it_is_right() {
    let region = Region::start().await;
    let (key, time) = (&region.admin, now().to_string());
    let changed = |change: fn(&mut store::token::Credentials)| {
        let mut key = key.clone();
        change(&mut key);
        authorization(&key, &time, "n1")
    };
    let cases = [
        ("no header", String::new(), 401, "Missing OAuth credentials"),
        (
            "other scheme",
            "Basic YTpi".into(),
            401,
            "Missing OAuth credentials",
        ),
        (
            "unknown token",
            changed(|key| key.token_key = "nobody".into()),
            401,
            "Invalid API key",
        ),
        (
            "wrong consumer",
            changed(|key| key.consumer_key = "other".into()),
            401,
            "Invalid API key",
        ),
        (
            "wrong secret",
            changed(|key| key.token_secret.push('x')),
            401,
            "Invalid API key",
        ),
        (
            "empty secret",
            changed(|key| key.token_secret.clear()),
            401,
            "Invalid API key",
        ),
        (
            "old",
            authorization(key, &(now() - 301).to_string(), "n1"),
            401,
            "Expired timestamp",
        ),
        (
            "future",
            authorization(key, &(now() + 310).to_string(), "n1"),
            401,
            "Expired timestamp",
        ),
        (
            "no time",
            authorization(key, "soon", "n1"),
            400,
            "oauth_timestamp",
        ),
        (
            "no nonce",
            authorization(key, &time, ""),
            401,
            "oauth_nonce",
        ),
        ("right", authorization(key, &time, "n1"), 200, "admin"),
        (
            "replayed",
            authorization(key, &time, "n1"),
            401,
            "Nonce already used",
        ),
        (
            "replayed at another time",
            authorization(key, &(now() - 5).to_string(), "n1"),
            401,
            "Nonce",
        ),
        (
            "another nonce",
            authorization(key, &time, "n2"),
            200,
            "admin",
        ),
        (
            "another token's nonce",
            authorization(&region.user, &time, "n1"),
            200,
            "user",
        ),
    ];
    for (case, authorization, status, part) in cases {
        let request = Request::builder()
            .uri("/MAAS/api/2.0/users/?op=whoami")
            .header(header::AUTHORIZATION, authorization)
            .body(Body::empty())
            .unwrap();
        let answer = region.send(request).await;
        assert_eq!(answer.status.as_u16(), status, "{case}: {}", answer.text);
        assert!(answer.text.contains(part), "{case}: {}", answer.text);
        if status == 401 {
            assert_eq!(
                answer.header("www-authenticate"),
                "OAuth realm=\"OAuth\"",
                "{case}"
            );
            assert!(answer.text.starts_with("Authorization Error: "), "{case}");
            assert!(answer.header("date").ends_with("GMT"), "{case}");
        }
    }
    // In the query, and in a form.
    let parameters = |nonce: &str| {
        authorization(key, &now().to_string(), nonce)
            .trim_start_matches("OAuth realm=\"\", ")
            .replace(", ", "&")
            .replace('"', "")
    };
    let path = format!("users/?op=whoami&{}", parameters("q1"));
    assert_eq!(
        region.call(None, "GET", &path, "", "").await.json()["username"],
        "admin"
    );
    let body = format!("name=x&{}", parameters("q2"));
    let path = "account/?op=create_authorisation_token";
    assert_eq!(
        region.call(None, "POST", path, FORM, body).await.json()["name"],
        "x"
    );
}

#[tokio::test]
async fn a_deleted_key_is_no_key() {
    let region = Region::start().await;
    let made = region
        .post("account/op-create_authorisation_token", "name=ci")
        .await
        .json();
    let key = store::token::Credentials {
        consumer_key: made["consumer_key"].as_str().unwrap().into(),
        token_key: made["token_key"].as_str().unwrap().into(),
        token_secret: made["token_secret"].as_str().unwrap().into(),
    };
    assert_eq!(
        (
            key.consumer_key.len(),
            key.token_key.len(),
            key.token_secret.len()
        ),
        (18, 18, 32)
    );
    let list = region
        .get("account/?op=list_authorisation_tokens")
        .await
        .json();
    assert!(
        list.as_array()
            .unwrap()
            .iter()
            .any(|token| token["token"] == key.api_key())
    );
    assert_eq!(
        region
            .call(Some(&key), "GET", "machines/", "", "")
            .await
            .status,
        200
    );
    let body = format!("token_key={}", key.token_key);
    let gone = region
        .post("account/?op=delete_authorisation_token", &body)
        .await;
    assert_eq!(gone.status, 204);
    region
        .call(Some(&key), "GET", "machines/", "", "")
        .await
        .refused(401, "Invalid API key");
}

#[tokio::test]
async fn users_look_and_administrators_touch() {
    let region = Region::start().await;
    let user = Some(&region.user);
    for path in [
        "machines/",
        "fabrics/",
        "subnets/",
        "events/?op=query",
        "users/",
        "rackcontrollers/",
        "zones/",
    ] {
        assert_eq!(
            region.call(user, "GET", path, "", "").await.status,
            200,
            "{path}"
        );
    }
    let body = "mac_addresses=52:54:00:00:00:01&architecture=amd64";
    for (method, path) in [
        ("POST", "machines/"),
        ("DELETE", "machines/abc123/"),
        ("POST", "machines/abc123/?op=commission"),
        ("GET", "machines/abc123/?op=power_parameters"),
        ("POST", "fabrics/"),
        ("PUT", "vlans/5001/"),
        ("POST", "subnets/"),
        ("POST", "ipranges/"),
        ("POST", "users/"),
        ("POST", "rackcontrollers/?op=create_token"),
        ("POST", "rackcontrollers/abc123/?op=revoke"),
    ] {
        let answer = region.call(user, method, path, FORM, body).await;
        assert_eq!(answer.status, 403, "{method} {path}: {}", answer.text);
    }
}

#[tokio::test]
async fn operations_are_found_by_path_method_and_op() {
    let region = Region::start().await;
    let cases = [
        ("GET", "users/?op=whoami", "", 200, "admin"),
        ("GET", "users?op=whoami", "", 200, "admin"),
        ("GET", "users/op-whoami", "", 200, "admin"),
        ("GET", "users/op-whoami/", "", 200, "admin"),
        ("GET", "users/?op=", "", 200, "[{"),
        (
            "POST",
            "account/",
            "op=create_authorisation_token&name=b",
            200,
            "token_key",
        ),
        ("POST", "fabrics/?op=", "name=blue", 200, "blue"),
        (
            "POST",
            "users/?op=xyz",
            "",
            400,
            "Unrecognised signature: method=POST op=xyz",
        ),
        (
            "POST",
            "account/",
            "",
            400,
            "Unrecognised signature: method=POST op=None",
        ),
        (
            "GET",
            "events/",
            "",
            400,
            "Unrecognised signature: method=GET op=None",
        ),
        ("PUT", "users/", "", 405, "Method"),
        ("GET", "nothing/", "", 404, "Unknown API endpoint"),
        (
            "GET",
            "machines/abc123/",
            "",
            404,
            "No Machine matches the given query.",
        ),
        (
            "GET",
            "machines/nonsense-%C3%A4/",
            "",
            404,
            "No Machine matches",
        ),
        ("GET", "fabrics/77/", "", 404, "No Fabric matches"),
        ("GET", "vlans/x/", "", 404, "No VLAN matches"),
    ];
    for (method, path, body, status, part) in cases {
        let answer = region
            .call(Some(&region.admin), method, path, FORM, body)
            .await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{method} {path}: {}",
            answer.text
        );
        assert!(
            answer.text.contains(part),
            "{method} {path}: {}",
            answer.text
        );
        if status != 200 {
            assert_eq!(
                answer.header("content-type"),
                "text/plain; charset=utf-8",
                "{path}"
            );
        }
    }
    let wrong = region.put("users/", "").await;
    assert_eq!(wrong.header("allow"), "GET, POST");
}

#[tokio::test]
async fn malformed_requests_get_a_clear_400() {
    let region = Region::start().await;
    let multipart = "multipart/form-data; boundary=B";
    let cases = [
        (
            multipart,
            "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1",
            "Malformed multipart",
        ),
        (multipart, "nothing", "Malformed multipart"),
        ("multipart/form-data", "--B--", "no boundary"),
        ("application/json", "{", "Malformed JSON"),
        ("application/json", "[]", "Malformed JSON"),
        ("text/html", "<a>", "Unsupported content type"),
        (FORM, "mac_addresses=%FF", "not text"),
        (FORM, "mac_addresses=a%00", "not text"),
    ];
    for (content_type, body, part) in cases {
        let answer = region
            .call(Some(&region.admin), "POST", "machines/", content_type, body)
            .await;
        answer.refused(400, part);
    }
    let many = "a=1&".repeat(1001);
    region
        .post("machines/", &many)
        .await
        .refused(400, "Too many fields");
    let large = format!("description={}", "x".repeat(3 << 20));
    region
        .post("machines/", &large)
        .await
        .refused(413, "too large");
    region
        .get("machines/?hostname=%FF")
        .await
        .refused(400, "not text");
    region
        .get("machines/?status=odd")
        .await
        .refused(400, "'odd' is not a valid status");
}

#[tokio::test]
async fn the_right_password_gives_the_same_key_each_time() {
    let region = Region::start().await;
    let made = region
        .post(
            "users/",
            "username=ada&password=hush%20hush&email=ada@example.com&is_superuser=1",
        )
        .await
        .json();
    assert_eq!(made["is_superuser"], true);
    let path = "/MAAS/accounts/authenticate/";
    let login = |body: &'static str| region.call(None, "POST", path, FORM, body);
    let first = login("username=ada&password=hush+hush&consumer=laptop")
        .await
        .json();
    assert_eq!(first["name"], "laptop");
    let again = login("username=ada&password=hush+hush&consumer=laptop")
        .await
        .json();
    assert_eq!(first, again);
    let other = login("username=ada&password=hush+hush&consumer=desk")
        .await
        .json();
    assert_ne!(first["token_key"], other["token_key"]);
    login("username=ada&password=hush")
        .await
        .refused(403, "Invalid username or password");
    login("username=eve&password=hush+hush")
        .await
        .refused(403, "Invalid username or password");
    // Made by other means, without a password.
    login("username=admin&password=!")
        .await
        .refused(403, "Invalid username or password");
    login("password=x").await.refused(400, "username");
    region.delete("users/ada/").await;
    login("username=ada&password=hush+hush")
        .await
        .refused(403, "Invalid");
    region.delete("users/admin/").await.refused(400, "itself");
    region
        .post("users/", "username=a/b&password=x&email=a@b")
        .await
        .refused(400, "username");
    region
        .post("users/", "username=user&password=x&email=a@b")
        .await
        .refused(400, "already exists");
}
