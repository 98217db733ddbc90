//! The surface of requests, as MAAS has it: methods, operations, kinds of bodies, paths.

mod support;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use support::{Answer, Region};

const FORM: &str = "application/x-www-form-urlencoded";

/// (method, path under the API, op) of all there is.
async fn operations(region: &Region) -> Vec<(String, String, Option<String>)> {
    let described = region.get("describe/").await.json();
    let mut all = Vec::new();
    for handler in described["handlers"].as_array().unwrap() {
        let path = handler["path"].as_str().unwrap();
        let path = path.strip_prefix("/MAAS/api/2.0/").unwrap();
        for action in handler["actions"].as_array().unwrap() {
            let text = |name: &str| action[name].as_str().map(str::to_owned);
            all.push((text("method").unwrap(), path.to_owned(), text("op")));
        }
    }
    all
}

/// Names that nothing has.
fn fill(path: &str) -> String {
    let filled = path.split('/').map(|part| match part.starts_with('{') {
        true => "77777",
        false => part,
    });
    filled.collect::<Vec<_>>().join("/")
}

fn part(name: &str, value: &str) -> String {
    format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
}

/// As the `maas` command and python-libmaas send it.
fn encoded(name: &str, value: &str) -> String {
    let value = STANDARD.encode(value);
    format!(
        "--B\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: form-data; name=\"{name}\"\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=\"utf-8\"\r\n\r\n{value}\r\n"
    )
}

#[tokio::test]
async fn every_kind_of_body_that_clients_send_means_the_same() {
    let region = Region::start().await;
    let multipart = "multipart/form-data; boundary=B";
    let quoted = "multipart/form-data; boundary=\"B\"; charset=utf-8";
    let cases: [(&str, &str, String); 10] = [
        (
            "",
            "f0",
            "name=f0&description=a+b%C3%A4&class_type=1g".into(),
        ),
        (
            FORM,
            "f1",
            "name=f1&description=a%20b%C3%A4&class_type=1g&".into(),
        ),
        (
            "application/x-www-form-urlencoded; charset=UTF-8",
            "f2",
            "class_type=1g&name=f2&description=a+b\u{e4}".into(),
        ),
        // Of several values the last counts, as Django has it.
        (
            FORM,
            "f3",
            "name=no&name=f3&description=x&description=a+b%C3%A4&class_type=1g".into(),
        ),
        (
            multipart,
            "f4",
            format!(
                "{}{}{}--B--\r\n",
                part("name", "f4"),
                part("description", "a b\u{e4}"),
                part("class_type", "1g")
            ),
        ),
        (
            quoted,
            "f5",
            format!(
                "{}{}{}--B--",
                encoded("name", "f5"),
                encoded("description", "a b\u{e4}"),
                encoded("class_type", "1g")
            ),
        ),
        (
            "Multipart/Form-Data; Boundary=B",
            "f6",
            format!(
                "{}{}{}--B--",
                encoded("name", "f6"),
                part("description", "a b\u{e4}"),
                part("class_type", "1g")
            ),
        ),
        (
            "application/json",
            "f7",
            r#"{"name": "f7", "description": "a b\u00e4", "class_type": "1g"}"#.into(),
        ),
        (
            "application/json; charset=utf-8",
            "f8",
            r#"{"name": ["no", "f8"], "description": "a b\u00e4", "class_type": "1g", "x": null}"#
                .into(),
        ),
        (
            "APPLICATION/JSON",
            "f9",
            r#" {"name": "f9", "description": "a b\u00e4", "class_type": "1g", "y": {"z": [1]}} "#
                .into(),
        ),
    ];
    for (content_type, name, body) in cases {
        let answer = region
            .call(Some(&region.admin), "POST", "fabrics/", content_type, body)
            .await;
        let made = answer.json();
        let got = (&made["name"], &made["description"], &made["class_type"]);
        assert_eq!(
            got,
            (&name.into(), &"a b\u{e4}".into(), &"1g".into()),
            "{content_type}"
        );
        let put = region
            .call(
                Some(&region.admin),
                "PUT",
                &format!("fabrics/{name}/"),
                content_type,
                "",
            )
            .await;
        // Nothing said, nothing changed.
        assert_eq!(put.json()["name"], name, "{content_type}");
    }
}

/// `--B\r\n\r\n--B--` is what Python's email package writes of no parts.
#[tokio::test]
async fn an_operation_without_parameters_takes_every_kind_of_nothing() {
    let region = Region::start().await;
    let bodies: [(&str, &str); 9] = [
        ("", ""),
        (FORM, ""),
        (FORM, "&&"),
        ("application/json", ""),
        ("application/json", "{}"),
        ("text/plain", ""),
        ("multipart/form-data; boundary=\"B\"", "--B\r\n\r\n--B--"),
        ("multipart/form-data; boundary=B", "--B\r\n\r\n--B--\r\n"),
        ("multipart/form-data; boundary=B", "--B--\r\n"),
    ];
    for (content_type, body) in bodies {
        for path in [
            "account/?op=create_authorisation_token",
            "account/op-create_authorisation_token",
        ] {
            let answer = region
                .call(Some(&region.admin), "POST", path, content_type, body)
                .await;
            assert_eq!(
                answer.json()["name"],
                "",
                "{content_type:?} {body:?} {path}"
            );
        }
        let answer = region
            .call(
                Some(&region.admin),
                "POST",
                "fabrics/?op=",
                content_type,
                body,
            )
            .await;
        assert_eq!(
            answer.status, 200,
            "{content_type:?} {body:?}: {}",
            answer.text
        );
    }
}

/// The operation may be in the query, in a body of any kind, or after the path; an empty one is none.
#[tokio::test]
async fn the_operation_is_found_wherever_clients_put_it() {
    let region = Region::start().await;
    let multipart = "multipart/form-data; boundary=B";
    let cases: [(&str, &str, String, u16); 12] = [
        (
            "account/?op=create_authorisation_token",
            FORM,
            "name=a".into(),
            200,
        ),
        (
            "account?op=create_authorisation_token",
            FORM,
            "name=a".into(),
            200,
        ),
        (
            "account/op-create_authorisation_token/",
            FORM,
            "name=a".into(),
            200,
        ),
        (
            "account/",
            FORM,
            "op=create_authorisation_token&name=a".into(),
            200,
        ),
        (
            "account/?op=",
            FORM,
            "op=create_authorisation_token&name=a".into(),
            200,
        ),
        (
            "account/",
            multipart,
            format!(
                "{}{}--B--",
                encoded("op", "create_authorisation_token"),
                encoded("name", "a")
            ),
            200,
        ),
        (
            "account/",
            "application/json",
            r#"{"op": "create_authorisation_token", "name": "a"}"#.into(),
            200,
        ),
        (
            "account/?op=nosuch&op=create_authorisation_token",
            FORM,
            "name=a".into(),
            200,
        ),
        (
            "account/?op=create_authorisation_token&op=nosuch",
            FORM,
            "name=a".into(),
            400,
        ),
        (
            "account/?op=create_authorisation_token",
            FORM,
            "op=nosuch&name=a".into(),
            200,
        ),
        (
            "account/?op=%63reate_authorisation_token",
            FORM,
            "name=a".into(),
            200,
        ),
        ("account/op-", FORM, "name=a".into(), 400),
    ];
    for (path, content_type, body, status) in cases {
        let answer = region
            .call(
                Some(&region.admin),
                "POST",
                path,
                content_type,
                body.clone(),
            )
            .await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{path} {body}: {}",
            answer.text
        );
        if status == 400 {
            answer.refused(400, "Unrecognised signature: method=POST op=");
        }
    }
}

#[tokio::test]
async fn an_operation_that_is_none_is_refused_in_maas_s_words_on_every_path() {
    let region = Region::start().await;
    let mut seen = 0;
    for (method, path, op) in operations(&region).await {
        if path.contains("/upload/") {
            continue; // its body is octets
        }
        let path = fill(&path);
        let answer = region
            .call(
                Some(&region.admin),
                &method,
                &format!("{path}?op=nosuch"),
                FORM,
                "",
            )
            .await;
        let want = format!("Unrecognised signature: method={method} op=nosuch");
        assert_eq!(
            (answer.status.as_u16(), answer.text.as_str()),
            (400, want.as_str()),
            "{method} {path} {op:?}"
        );
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        seen += 1;
    }
    assert!(seen > 60, "{seen}");
}

fn facts(answer: &Answer) -> (u16, String, String) {
    let content_type = answer.header("content-type").to_owned();
    (answer.status.as_u16(), content_type, answer.text.clone())
}

/// With and without a slash at the end, and percent-escaped: one resource.
#[tokio::test]
async fn a_path_is_the_same_with_and_without_its_slash_and_escaped() {
    let region = Region::start().await;
    let mut seen = 0;
    for (method, path, op) in operations(&region).await {
        if method != "GET" {
            continue;
        }
        let path = fill(&path);
        let op = op.map_or(String::new(), |op| format!("?op={op}"));
        let with = region.get(&format!("{path}{op}")).await;
        let without = region
            .get(&format!("{}{op}", path.trim_end_matches('/')))
            .await;
        assert_eq!(facts(&without), facts(&with), "{path}{op}");
        assert_ne!(with.status, 405, "{path}{op}");
        let escaped = path.replace("77777", "%37%377%37%37");
        let escaped = region.get(&format!("{escaped}{op}")).await;
        assert_eq!(facts(&escaped), facts(&with), "{path}{op}");
        seen += 1;
    }
    assert!(seen > 40, "{seen}");
    region
        .post(
            "users/",
            "username=a%40b.c%2Fd&email=a%40b&password=long-enough-pw",
        )
        .await;
    for (path, status) in [
        ("users/%61dmin/", 200),
        ("users/admin%00/", 404),
        ("users/%FF/", 404),
        ("users/%zz/", 404),
        ("users/a%2Fb/", 404),
        ("users/%2561dmin/", 404),
        ("users/../users/", 404),
        ("machines/%2e%2e/", 404),
        ("nodes/%2E/results/", 404),
        ("fabrics/999999999999999999999/", 404),
        ("fabrics/-1/", 404),
        ("vlans/1e3/", 404),
        ("", 404),
    ] {
        let answer = region.get(path).await;
        assert_eq!(answer.status.as_u16(), status, "{path}: {}", answer.text);
        assert!(
            answer.header("content-type").starts_with(match status {
                200 => "application/json",
                _ => "text/plain",
            }),
            "{path}"
        );
    }
    let old = region.get("/MAAS/api/1.0/").await;
    assert_eq!(old.status, 410);
}

/// HEAD is GET without the text (the server leaves that out); others are refused with what there is.
#[tokio::test]
async fn other_methods_are_refused_with_what_there_is() {
    let region = Region::start().await;
    let get = region.get("users/").await;
    let head = region
        .call(Some(&region.admin), "HEAD", "users/", "", Body::empty())
        .await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), get.header("content-type"));
    for method in ["OPTIONS", "PATCH", "TRACE", "CONNECT", "FOO"] {
        for path in ["users/", "users/admin/", "machines/", "version/"] {
            let answer = region
                .call(Some(&region.admin), method, path, "", Body::empty())
                .await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert!(answer.header("allow").contains("GET"), "{method} {path}");
        }
    }
    // Who asks without a key is told so before anything else of a resource.
    let answer = region.call(None, "HEAD", "users/", "", Body::empty()).await;
    assert_eq!(answer.status, 401);
}

/// The `maas` command announces a file by its size and SHA-256 and finds in `sets` the one file to go on with.
#[tokio::test]
async fn the_maas_command_uploads_every_file_of_an_image_and_loaders() {
    use sha2::Digest;
    let region = Region::start().await;
    for (filetype, name) in [
        ("boot-kernel", "debian/bookworm"),
        ("boot-initrd", "debian/bookworm"),
        ("squashfs", "debian/bookworm"),
        ("bootloader", "bootx64.efi"),
    ] {
        let content = format!("octets of {filetype}");
        let sha256 = hex::encode(sha2::Sha256::digest(&content));
        let fields = [
            ("architecture", "amd64/generic"),
            ("filetype", filetype),
            ("name", name),
            ("sha256", &sha256),
            ("size", &content.len().to_string()),
        ];
        let body: String = fields
            .iter()
            .map(|(name, value)| encoded(name, value))
            .collect();
        let multipart = "multipart/form-data; boundary=\"B\"";
        let made = region
            .call(
                Some(&region.admin),
                "POST",
                "boot-resources/",
                multipart,
                body + "--B--\r\n",
            )
            .await;
        assert_eq!(made.status, 201);
        let made = made.json();
        let sets = made["sets"].as_object().unwrap();
        let files = sets.values().next().unwrap()["files"].as_object().unwrap();
        assert_eq!(files.len(), 1, "{made}");
        let file = files.values().next().unwrap();
        assert_eq!(file["complete"], false);
        let uri = file["upload_uri"].as_str().unwrap();
        let (one, two) = content.split_at(5);
        for chunk in [one, two] {
            let octets = "application/octet-stream";
            let sent = region
                .call(Some(&region.admin), "PUT", uri, octets, chunk.to_owned())
                .await;
            assert_eq!(sent.status, 200, "{}", sent.text);
        }
    }
    let all = region.get("boot-resources/").await.json();
    assert_eq!(
        (all.as_array().unwrap().len(), &all[0]["complete"]),
        (1, &true.into())
    );
}
