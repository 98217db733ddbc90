//! Paths of the metadata service, and the rack's address as the machine wrote it. Pure.

use http::Method;

use crate::error::ApiError;

/// Where racks answer machines.
const RACK_HTTP_PORT: u16 = 5248;
const VERSIONS: [&str; 2] = ["latest", "2012-03-01"];

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `/`: the list of versions.
    Versions,
    /// `/{version}/`
    Index,
    /// POST to `/{version}/`: signal, netboot.
    Root,
    MetaData,
    Item(Item),
    UserData,
    Scripts,
    /// `/{version}/by-id/{system_id}/`
    Preseed(String),
    EnlistPreseed,
    EnlistIndex,
    EnlistMetaData,
    EnlistItem(Item),
    EnlistUserData,
    EnlistScripts,
    /// `/status/{system_id}`: cloud-init's webhook.
    Status(model::SystemId),
}

/// Below `meta-data/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    InstanceId,
    LocalHostname,
    /// Known names that nothing is kept for: public-keys, vendor-data, x509.
    Empty,
}

/// The resource at `path`, which is what follows `/MAAS/metadata`. Slashes may be doubled and may end it.
pub fn locate(method: &Method, path: &str) -> Result<Resource, ApiError> {
    let segments: Vec<&str> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    let unknown = || ApiError::NotFound("Unknown metadata path.".into());
    let (resource, posts) = match segments.as_slice() {
        [] => (Resource::Versions, false),
        ["status", id] => (Resource::Status(id.parse().map_err(|_| unknown())?), true),
        ["enlist", version, rest @ ..] if VERSIONS.contains(version) => {
            let resource = match rest {
                [] => Resource::EnlistIndex,
                ["meta-data"] => Resource::EnlistMetaData,
                ["meta-data", name] => Resource::EnlistItem(item(name).ok_or_else(unknown)?),
                ["user-data"] => Resource::EnlistUserData,
                ["maas-scripts"] => Resource::EnlistScripts,
                _ => return Err(unknown()),
            };
            (resource, false)
        }
        [version, rest @ ..] if VERSIONS.contains(version) => match rest {
            [] if method == Method::POST => (Resource::Root, true),
            [] => (Resource::Index, false),
            ["meta-data"] => (Resource::MetaData, false),
            ["meta-data", name] => (Resource::Item(item(name).ok_or_else(unknown)?), false),
            ["user-data"] => (Resource::UserData, false),
            ["maas-scripts" | "maas-commissioning-scripts"] => (Resource::Scripts, false),
            ["by-id", id] => (Resource::Preseed((*id).to_owned()), method == Method::POST),
            ["enlist-preseed"] => (Resource::EnlistPreseed, false),
            _ => return Err(unknown()),
        },
        _ => return Err(unknown()),
    };
    let fits = if posts {
        method == Method::POST
    } else {
        method == Method::GET || method == Method::HEAD
    };
    if !fits {
        let allow = if posts { "POST" } else { "GET, HEAD" };
        return Err(ApiError::MethodNotAllowed(allow.into()));
    }
    Ok(resource)
}

fn item(name: &str) -> Option<Item> {
    match name {
        "instance-id" => Some(Item::InstanceId),
        "local-hostname" => Some(Item::LocalHostname),
        "public-keys" | "vendor-data" | "x509" => Some(Item::Empty),
        _ => None,
    }
}

/// `http://HOST:PORT` of the rack, from the Host header of the machine's request. A client that leaves the port out
/// (UEFI's HTTP boot does) means the rack's own. None when it is no host: it goes into a config.
pub fn rack_base(host: &str) -> Option<String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (format!("[{address}]"), port.strip_prefix(':'))
        }
        None => {
            let (name, port) = host
                .split_once(':')
                .map_or((host, None), |(n, p)| (n, Some(p)));
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
            if name.is_empty() || name.len() > 253 || !name.chars().all(plain) {
                return None;
            }
            (name.to_owned(), port)
        }
    };
    let port = match port {
        Some(port) => port.parse::<u16>().ok().filter(|port| *port != 0)?,
        None => RACK_HTTP_PORT,
    };
    Some(format!("http://{name}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_the_reference_says() {
        let (get, post) = (Method::GET, Method::POST);
        let id: model::SystemId = "abc123".parse().unwrap();
        let cases = [
            (&get, "/", Some(Resource::Versions)),
            (&get, "", Some(Resource::Versions)),
            (&get, "/2012-03-01/", Some(Resource::Index)),
            (&get, "//latest", Some(Resource::Index)),
            (&get, "/2011/", None),
            (&post, "/2012-03-01/", Some(Resource::Root)),
            (&get, "/latest/meta-data/", Some(Resource::MetaData)),
            (
                &get,
                "/latest/meta-data/instance-id",
                Some(Resource::Item(Item::InstanceId)),
            ),
            (
                &get,
                "/latest//meta-data/local-hostname/",
                Some(Resource::Item(Item::LocalHostname)),
            ),
            (
                &get,
                "/latest/meta-data/public-keys",
                Some(Resource::Item(Item::Empty)),
            ),
            (&get, "/latest/meta-data/../x", None),
            (&get, "/latest/user-data", Some(Resource::UserData)),
            (&get, "/latest/maas-scripts", Some(Resource::Scripts)),
            (&post, "/latest/maas-scripts", None),
            (
                &get,
                "/latest/by-id/abc123/",
                Some(Resource::Preseed("abc123".into())),
            ),
            (
                &post,
                "/latest/by-id/abc123/",
                Some(Resource::Preseed("abc123".into())),
            ),
            (
                &get,
                "/latest/enlist-preseed/",
                Some(Resource::EnlistPreseed),
            ),
            (
                &get,
                "/enlist/latest/meta-data/instance-id",
                Some(Resource::EnlistItem(Item::InstanceId)),
            ),
            (
                &get,
                "/enlist/2012-03-01/user-data",
                Some(Resource::EnlistUserData),
            ),
            (
                &get,
                "/enlist/2012-03-01/maas-scripts",
                Some(Resource::EnlistScripts),
            ),
            (&post, "/status/abc123", Some(Resource::Status(id))),
            (&get, "/status/abc123", None),
            (&post, "/status/ABC", None),
        ];
        for (method, path, want) in cases {
            assert_eq!(locate(method, path).ok(), want, "{method} {path}");
        }
    }

    #[test]
    fn the_rack_is_where_the_machine_says() {
        for (host, want) in [
            ("10.0.0.1:5248", Some("http://10.0.0.1:5248")),
            ("10.0.0.1", Some("http://10.0.0.1:5248")),
            ("rack-1.maas", Some("http://rack-1.maas:5248")),
            ("rack:80", Some("http://rack:80")),
            ("[fd99::1]:5248", Some("http://[fd99::1]:5248")),
            ("[fd99::1]", Some("http://[fd99::1]:5248")),
            ("", None),
            ("a b", None),
            ("evil\"\n x", None),
            ("10.0.0.1:port", None),
            ("10.0.0.1:0", None),
            ("[fd99::1", None),
            ("[nope]:1", None),
        ] {
            assert_eq!(rack_base(host).as_deref(), want, "{host}");
        }
    }
}
