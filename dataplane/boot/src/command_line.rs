//! The kernel command line of an ephemeral boot, token by token as MAAS writes it.
//!
//! Every value is checked here, once, for all loaders: what could end a line or start another command is an
//! error. What a loader treats specially beyond that is quoted in `script.rs`.

use std::net::{IpAddr, SocketAddr};

use crate::machine::{Machine, Purpose, Settings};

/// The rack's HTTP port.
pub const RACK_HTTP_PORT: u16 = 5248;

/// Why a machine gets no script. The field is to be mended in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    #[error("the machine has no {field}")]
    Missing { field: &'static str },
    #[error("{field} has characters that may not be in a boot script")]
    Unsafe { field: &'static str },
}

/// One token of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// Our own syntax around checked values: it needs no quoting in any loader.
    Plain(String),
    /// The datasource list, whose braces and quotes every loader wants otherwise.
    Datasource,
    /// The operator's words, printable ASCII without spaces.
    Option(String),
}

/// How Ubuntu releases before jammy are called: their AppArmor profiles break on the overlay.
const WITHOUT_APPARMOR: [&str; 7] = [
    "precise", "trusty", "xenial", "bionic", "focal", "groovy", "impish",
];

/// The command line without BOOTIF, which is each loader's own affair.
pub(crate) fn command_line(
    machine: &Machine,
    rack: SocketAddr,
    settings: &Settings,
) -> Result<Vec<Token>, RenderError> {
    let squashfs = url_path(&machine.squashfs, "squashfs")?;
    let enlist = machine.purpose == Purpose::Enlist;
    let hostname = if enlist && machine.hostname.is_empty() {
        "maas-enlist"
    } else {
        &machine.hostname
    };
    let hostname = host_name(hostname, "hostname")?;
    let preseed = if enlist {
        "enlist-preseed/?op=get_enlist_preseed".to_string()
    } else {
        format!("by-id/{}/?op=get_preseed", system_id(&machine.system_id)?)
    };
    let networking = match rack.ip() {
        IpAddr::V4(_) => [format!("ip=::::{hostname}:BOOTIF:dhcp"), "ip6=off".into()],
        IpAddr::V6(_) => ["ip=off".into(), "ip6=dhcp".into()],
    };
    let log_host = match settings.log_host.as_str() {
        "" => rack.ip().to_string(),
        host => host_name(host, "log host")?.to_string(),
    };

    let mut line = vec![Token::Plain("nomodeset".into())];
    let mut plain = |token: String| line.push(Token::Plain(token));
    plain(format!("root=squash:http://{rack}{squashfs}"));
    networking.into_iter().for_each(&mut plain);
    line.push(Token::Datasource);
    let mut plain = |token: String| line.push(Token::Plain(token));
    plain(format!(
        "cloud-config-url=http://{rack}/MAAS/metadata/latest/{preseed}"
    ));
    plain("ro".into());
    plain("overlayroot=tmpfs".into());
    plain("overlayroot_cfgdisk=disabled".into());
    if WITHOUT_APPARMOR.contains(&machine.release.as_str()) {
        plain("apparmor=0".into());
    }
    plain(format!("log_host={log_host}"));
    plain(format!("log_port={}", settings.log_port));
    line.extend(options(&machine.ephemeral_options, "ephemeral options")?);
    let mut extra = options(&settings.kernel_options, "kernel options")?;
    extra.extend(options(&machine.extra_options, "extra options")?);
    if !extra.is_empty() {
        // Behind it stands what an installation keeps.
        line.push(Token::Plain("---".into()));
        line.append(&mut extra);
    }
    Ok(line)
}

/// A path of our own HTTP server: starts with a slash, and has nothing that any loader would interpret.
pub(crate) fn url_path<'a>(path: &'a str, field: &'static str) -> Result<&'a str, RenderError> {
    if path.is_empty() {
        return Err(RenderError::Missing { field });
    }
    let plain = |octet: u8| octet.is_ascii_alphanumeric() || b"/._~+:@%=-".contains(&octet);
    if path.starts_with('/') && path.bytes().all(plain) {
        Ok(path)
    } else {
        Err(RenderError::Unsafe { field })
    }
}

fn host_name<'a>(name: &'a str, field: &'static str) -> Result<&'a str, RenderError> {
    if name.is_empty() {
        return Err(RenderError::Missing { field });
    }
    let plain = |octet: u8| octet.is_ascii_alphanumeric() || b".:-_".contains(&octet);
    // A colon is an IPv6 address's; in a host name it would end the field of ip=.
    let colons = field == "hostname" && name.contains(':');
    if name.len() <= 253 && name.bytes().all(plain) && !colons {
        Ok(name)
    } else {
        Err(RenderError::Unsafe { field })
    }
}

fn system_id(id: &str) -> Result<&str, RenderError> {
    let field = "system id";
    if id.is_empty() {
        return Err(RenderError::Missing { field });
    }
    if id.len() <= 41 && id.bytes().all(|octet| octet.is_ascii_alphanumeric()) {
        Ok(id)
    } else {
        Err(RenderError::Unsafe { field })
    }
}

/// The operator's kernel options: printable ASCII, split at spaces.
fn options(text: &str, field: &'static str) -> Result<Vec<Token>, RenderError> {
    if !text.bytes().all(|octet| (0x20..0x7f).contains(&octet)) {
        return Err(RenderError::Unsafe { field });
    }
    Ok(text
        .split_ascii_whitespace()
        .map(|word| Token::Option(word.into()))
        .collect())
}
