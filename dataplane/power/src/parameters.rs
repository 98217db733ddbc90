//! What comes with one operation: the driver and its MAAS power parameters, parsed once.
//!
//! Secrets live in [`SecretString`] (zeroed on drop, no Debug) and in no error text.

use std::fmt;

use secrecy::SecretString;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::ipmi::crypto::Suite;
use crate::pattern::Pattern;
use crate::{PowerCommand, PowerError};

/// UDP port of RMCP (IPMI v2.0 §13.1.1).
const RMCP_PORT: u16 = 623;
/// IPMI v2.0 table 22-30 and §13.20: 16 octets of name, 20 of password and K_g.
const USER_BYTES_MAX: usize = 16;
const SECRET_BYTES_MAX: usize = 20;
const HOST_BYTES_MAX: usize = 253;
const URI_BYTES_MAX: usize = 2_048;

/// One thing to do to one BMC.
#[derive(Debug)]
pub struct Operation {
    /// The same operation may arrive twice; it then has the same id.
    pub id: [u8; 16],
    pub command: PowerCommand,
    pub driver: Driver,
}

impl Operation {
    /// Parses the driver's name and its parameters, a JSON object with MAAS names. Unknown parameters
    /// are ignored: MAAS sends those of its own driver versions too.
    ///
    /// Errors: [`PowerError::Parameters`], naming the parameter and never its value.
    pub fn parse(
        id: [u8; 16],
        driver: &str,
        command: PowerCommand,
        parameters: &str,
    ) -> Result<Self, PowerError> {
        let mut fields = Fields::parse(parameters)?;
        let driver = match driver {
            "ipmi" => Driver::Ipmi(Box::new(IpmiParameters::parse(&mut fields)?)),
            "webhook" => Driver::Webhook(Box::new(WebhookParameters::parse(&mut fields)?)),
            "manual" => Driver::Manual,
            _ => return Err(invalid("driver", "unknown")),
        };
        Ok(Self {
            id,
            command,
            driver,
        })
    }
}

/// A power driver with what it needs.
#[derive(Debug)]
pub enum Driver {
    Ipmi(Box<IpmiParameters>),
    Webhook(Box<WebhookParameters>),
    Manual,
}

impl Driver {
    /// What two operations share if they must not run at once; `None`: nothing is talked to. Not for
    /// logs: a webhook's URI may hold a secret.
    pub fn gate_key(&self) -> Option<String> {
        match self {
            Self::Ipmi(parameters) => Some(parameters.address.to_string()),
            Self::Webhook(parameters) => Some(parameters.query_uri.to_string()),
            Self::Manual => None,
        }
    }

    /// What errors and logs call the BMC. No secrets.
    pub fn bmc(&self) -> String {
        match self {
            Self::Ipmi(parameters) => parameters.address.to_string(),
            Self::Webhook(parameters) => parameters.name.clone(),
            Self::Manual => "manual".to_owned(),
        }
    }
}

/// Host (name or address) and port of a BMC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BmcAddress {
    pub host: String,
    pub port: u16,
}

impl BmcAddress {
    /// `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            match rest.strip_prefix(':') {
                Some(port) => (host, port.parse().ok()?),
                None if rest.is_empty() => (host, RMCP_PORT),
                None => return None,
            }
        } else {
            match text.split_once(':') {
                // More than one colon: an IPv6 address without brackets.
                Some((_, rest)) if rest.contains(':') => {
                    text.parse::<std::net::Ipv6Addr>().ok()?;
                    (text, RMCP_PORT)
                }
                Some((host, port)) => (host, port.parse().ok()?),
                None => (text, RMCP_PORT),
            }
        };
        // What is made of digits and dots is meant as an address.
        let is_number = |b: u8| b.is_ascii_digit() || b == b'.';
        let plausible = !host.is_empty()
            && host.len() <= HOST_BYTES_MAX
            && port != 0
            && !host.starts_with('-')
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b".-:_".contains(&b))
            && (!host.bytes().all(is_number) || host.parse::<std::net::Ipv4Addr>().is_ok());
        // One BMC, one spelling: at most one operation at a time talks to it.
        let host = match host.parse::<std::net::IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => host.trim_end_matches('.').to_ascii_lowercase(),
        };
        (plausible && !host.is_empty()).then_some(Self { host, port })
    }
}

impl fmt::Display for BmcAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host.contains(':'), self.port) {
            (_, RMCP_PORT) => f.write_str(&self.host),
            (true, port) => write!(f, "[{}]:{port}", self.host),
            (false, port) => write!(f, "{}:{port}", self.host),
        }
    }
}

/// Session privilege (IPMI v2.0 table 13-9), the value on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Privilege {
    User = 2,
    Operator = 3,
    Administrator = 4,
}

/// MAAS `power_boot_type`: which firmware the network boot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootType {
    /// Leave the BMC's flag as it is.
    Auto,
    Legacy,
    Efi,
}

/// MAAS `power_off_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerOffMode {
    Hard,
    /// Ask the operating system, through ACPI.
    Soft,
}

/// Parameters of the `ipmi` driver.
#[derive(Debug)]
pub struct IpmiParameters {
    pub address: BmcAddress,
    pub(crate) user: String,
    pub(crate) password: SecretString,
    /// The BMC key; without one the password takes its place (IPMI v2.0 §13.31).
    pub(crate) k_g: Option<Key>,
    /// `None`: ask the BMC, prefer 17, fall back to 3.
    pub suite: Option<Suite>,
    pub privilege: Privilege,
    pub boot_type: BootType,
    pub power_off_mode: PowerOffMode,
    /// Workaround `nochecksumcheck`: do not check the checksums inside a response. The packet's
    /// integrity code is checked all the same.
    pub skip_checksums: bool,
    /// Flags that ask for something this driver does not do (it may not need it); told in the steps.
    pub flags_unused: Vec<String>,
}

/// A binary secret: zeroed on drop, no Debug.
pub(crate) struct Key(pub(crate) Zeroizing<Vec<u8>>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

impl IpmiParameters {
    fn parse(fields: &mut Fields) -> Result<Self, PowerError> {
        let address = fields.text("power_address")?.unwrap_or_default();
        let address = BmcAddress::parse(&address)
            .ok_or(invalid("power_address", "not a host with an optional port"))?;
        let user = fields.text("power_user")?.unwrap_or_default();
        if user.len() > USER_BYTES_MAX {
            return Err(invalid("power_user", "longer than 16 octets"));
        }
        let password = fields.text("power_pass")?.unwrap_or_default();
        if password.len() > SECRET_BYTES_MAX {
            return Err(invalid("power_pass", "longer than 20 octets"));
        }
        match fields.text("power_driver")?.as_deref() {
            None | Some("" | "LAN_2_0") => {}
            Some(_) => {
                return Err(invalid(
                    "power_driver",
                    "not LAN_2_0: IPMI 1.5 is not spoken",
                ));
            }
        }
        let suite = match fields.text("cipher_suite_id")?.as_deref() {
            None | Some("") => None,
            Some(text) => Some(text.parse().ok().and_then(Suite::from_id).ok_or(invalid(
                "cipher_suite_id",
                "not 17 or 3, the suites with authentication, integrity and encryption",
            ))?),
        };
        let privilege = match fields.text("privilege_level")?.as_deref() {
            Some("USER") => Privilege::User,
            None | Some("" | "OPERATOR") => Privilege::Operator,
            Some("ADMIN" | "ADMINISTRATOR") => Privilege::Administrator,
            Some(_) => return Err(invalid("privilege_level", "not USER, OPERATOR or ADMIN")),
        };
        let boot_type = match fields.text("power_boot_type")?.as_deref() {
            None | Some("" | "auto") => BootType::Auto,
            Some("legacy") => BootType::Legacy,
            Some("efi") => BootType::Efi,
            Some(_) => return Err(invalid("power_boot_type", "not auto, legacy or efi")),
        };
        let power_off_mode = match fields.text("power_off_mode")?.as_deref() {
            None | Some("" | "hard") => PowerOffMode::Hard,
            Some("soft") => PowerOffMode::Soft,
            Some(_) => return Err(invalid("power_off_mode", "not hard or soft")),
        };
        let mut skip_checksums = false;
        let mut flags_unused = Vec::new();
        for flag in fields.words("workaround_flags")? {
            match flag.as_str() {
                "" => {}
                "nochecksumcheck" => skip_checksums = true,
                // The privilege in Open Session is always that of RAKP 1, which is what this flag asks for.
                "opensesspriv" => {}
                // About capabilities queries, IPMI 1.5 and cipher suite 0, none of which is used here.
                "authcap"
                | "idzero"
                | "unexpectedauth"
                | "forcepermsg"
                | "endianseq"
                | "integritycheckvalue"
                | "ipmiping" => {}
                other if flags_unused.len() < 8 => {
                    flags_unused.push(
                        other
                            .chars()
                            .filter(char::is_ascii_alphanumeric)
                            .take(24)
                            .collect(),
                    );
                }
                _ => {}
            }
        }
        Ok(Self {
            address,
            user,
            password: password.into(),
            k_g: fields
                .text("k_g")?
                .map(Zeroizing::new)
                .map(|text| parse_k_g(&text))
                .transpose()?
                .flatten(),
            suite,
            privilege,
            boot_type,
            power_off_mode,
            skip_checksums,
            flags_unused,
        })
    }
}

/// `0x` and hex digits, 40 bare hex digits, or text of at most 20 octets. Empty: no key.
fn parse_k_g(text: &str) -> Result<Option<Key>, PowerError> {
    let problem = invalid(
        "k_g",
        "not 0x and up to 40 hex digits, nor text of up to 20 octets",
    );
    if text.is_empty() {
        return Ok(None);
    }
    let digits = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => Some(digits),
        None if text.len() == 2 * SECRET_BYTES_MAX => Some(text),
        None => None,
    };
    let Some(digits) = digits else {
        return match text.len() <= SECRET_BYTES_MAX {
            true => Ok(Some(Key(Zeroizing::new(text.as_bytes().to_vec())))),
            false => Err(problem),
        };
    };
    let nibbles: Option<Zeroizing<Vec<u8>>> = digits
        .chars()
        .map(|c| c.to_digit(16).map(|n| n as u8))
        .collect::<Option<Vec<u8>>>()
        .map(Zeroizing::new);
    match nibbles {
        Some(n) if !n.is_empty() && n.len() % 2 == 0 && n.len() <= 2 * SECRET_BYTES_MAX => {
            let octets = n
                .chunks_exact(2)
                .map(|pair| pair[0] << 4 | pair[1])
                .collect();
            Ok(Some(Key(Zeroizing::new(octets))))
        }
        _ => Err(problem),
    }
}

/// Parameters of the `webhook` driver.
#[derive(Debug)]
pub struct WebhookParameters {
    /// Host and port of the query URI: the BMC's name in errors.
    pub(crate) name: String,
    pub(crate) on_uri: reqwest::Url,
    pub(crate) off_uri: reqwest::Url,
    pub(crate) query_uri: reqwest::Url,
    pub(crate) on_pattern: Pattern,
    pub(crate) off_pattern: Pattern,
    pub(crate) user: String,
    pub(crate) password: SecretString,
    pub(crate) token: SecretString,
    pub(crate) verify_ssl: bool,
}

impl WebhookParameters {
    fn parse(fields: &mut Fields) -> Result<Self, PowerError> {
        let query_uri = fields.uri("power_query_uri")?;
        // MAAS's own defaults.
        let on = fields
            .text("power_on_regex")?
            .unwrap_or_else(|| r"status.*\:.*running".to_owned());
        let off = fields
            .text("power_off_regex")?
            .unwrap_or_else(|| r"status.*\:.*stopped".to_owned());
        Ok(Self {
            name: format!(
                "{}:{}",
                query_uri.host_str().unwrap_or_default(),
                query_uri.port_or_known_default().unwrap_or_default(),
            ),
            on_uri: fields.uri("power_on_uri")?,
            off_uri: fields.uri("power_off_uri")?,
            query_uri,
            on_pattern: Pattern::parse(&on).map_err(|p| invalid("power_on_regex", p))?,
            off_pattern: Pattern::parse(&off).map_err(|p| invalid("power_off_regex", p))?,
            user: fields.text("power_user")?.unwrap_or_default(),
            password: fields.text("power_pass")?.unwrap_or_default().into(),
            token: fields.text("power_token")?.unwrap_or_default().into(),
            verify_ssl: !matches!(
                fields.text("power_verify_ssl")?.as_deref(),
                Some("n" | "no" | "false" | "0")
            ),
        })
    }
}

/// The JSON object, taken apart by name.
struct Fields(Map<String, Value>);

impl Fields {
    fn parse(text: &str) -> Result<Self, PowerError> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            // serde_json's message may quote the text, which holds secrets.
            _ => Err(invalid("parameters", "not a JSON object")),
        }
    }

    /// A value as text: moved out, so that no copy of a secret stays behind.
    fn text(&mut self, name: &'static str) -> Result<Option<String>, PowerError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(Value::Bool(flag)) => Ok(Some(flag.to_string())),
            Some(_) => Err(invalid(name, "not a text")),
        }
    }

    /// A list, or a text of words separated by commas or blanks.
    fn words(&mut self, name: &'static str) -> Result<Vec<String>, PowerError> {
        match self.0.remove(name) {
            Some(Value::Array(items)) => Ok(items
                .into_iter()
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect()),
            Some(Value::String(text)) => Ok(text.split([',', ' ']).map(str::to_owned).collect()),
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(_) => Err(invalid(name, "not a list")),
        }
    }

    fn uri(&mut self, name: &'static str) -> Result<reqwest::Url, PowerError> {
        let text = self.text(name)?.unwrap_or_default();
        if text.len() > URI_BYTES_MAX {
            return Err(invalid(name, "too long"));
        }
        match reqwest::Url::parse(&text) {
            Ok(uri) if matches!(uri.scheme(), "http" | "https") && uri.has_host() => Ok(uri),
            _ => Err(invalid(name, "not an http or https URI")),
        }
    }
}

fn invalid(name: &'static str, problem: &'static str) -> PowerError {
    PowerError::Parameters { name, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipmi(json: &str) -> Result<IpmiParameters, PowerError> {
        match Operation::parse([0; 16], "ipmi", PowerCommand::Query, json)?.driver {
            Driver::Ipmi(parameters) => Ok(*parameters),
            other => panic!("not ipmi: {other:?}"),
        }
    }

    #[test]
    fn addresses_may_carry_a_port() {
        let cases = [
            ("10.0.0.9", Some(("10.0.0.9", 623))),
            ("10.0.0.9:6230", Some(("10.0.0.9", 6230))),
            ("bmc-7.example", Some(("bmc-7.example", 623))),
            ("fd00::9", Some(("fd00::9", 623))),
            ("FD00:0:0::9", Some(("fd00::9", 623))),
            ("BMC-7.Example.", Some(("bmc-7.example", 623))),
            ("[fd00::9]", Some(("fd00::9", 623))),
            ("[fd00::9]:6230", Some(("fd00::9", 6230))),
            ("", None),
            (":623", None),
            ("host:0", None),
            ("host:x", None),
            ("host:99999", None),
            ("[::1", None),
            ("[host]:1", None),
            ("a b", None),
            ("-O x;y", None),
        ];
        for (text, want) in cases {
            let got = BmcAddress::parse(text);
            let got = got.as_ref().map(|a| (a.host.as_str(), a.port));
            assert_eq!(got, want, "{text:?}");
        }
    }

    #[test]
    fn k_g_is_hex_or_text() {
        let key = |text: &str| parse_k_g(text).map(|key| key.map(|k| k.0.to_vec()));
        assert_eq!(key("").unwrap(), None);
        assert_eq!(key("0x0aff").unwrap(), Some(vec![0x0a, 0xff]));
        assert_eq!(key("secret").unwrap(), Some(b"secret".to_vec()));
        assert_eq!(key(&"ab".repeat(20)).unwrap(), Some(vec![0xab; 20]));
        for bad in [
            "0x",
            "0xabc",
            "0xzz",
            "twenty-one-octets-long!",
            &"zz".repeat(20),
        ] {
            assert!(key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn maas_parameters_are_understood() {
        let p = ipmi(
            r#"{"power_address":"10.0.0.9","power_user":"maas","power_pass":"secret","k_g":"",
                "power_driver":"LAN_2_0","cipher_suite_id":"3","privilege_level":"ADMIN",
                "workaround_flags":["opensesspriv","intel20"],"power_boot_type":"efi",
                "power_off_mode":"soft","mac_address":"52:54:00:00:00:01"}"#,
        )
        .unwrap();
        assert_eq!(p.suite, Some(Suite::Sha1));
        assert_eq!(p.privilege, Privilege::Administrator);
        assert_eq!(p.boot_type, BootType::Efi);
        assert_eq!(p.power_off_mode, PowerOffMode::Soft);
        assert_eq!(p.flags_unused, ["intel20"]);
        assert!(p.k_g.is_none());
        // Defaults, and a number where MAAS has text.
        let p = ipmi(r#"{"power_address":"h","cipher_suite_id":17}"#).unwrap();
        assert_eq!(
            (p.suite, p.privilege),
            (Some(Suite::Sha256), Privilege::Operator)
        );
        for bad in [
            "[]",
            "{",
            r#"{"power_user":"x"}"#,
            r#"{"power_address":"h","cipher_suite_id":"0"}"#,
            r#"{"power_address":"h","power_pass":"123456789012345678901"}"#,
            r#"{"power_address":"h","power_user":"12345678901234567"}"#,
            r#"{"power_address":"h","privilege_level":"ROOT"}"#,
            r#"{"power_address":["h"]}"#,
        ] {
            let error = ipmi(bad).unwrap_err();
            assert_eq!(error.class(), crate::ErrorClass::Parameters, "{bad}");
        }
    }

    /// The same table judges the API: what was set there is not refused here.
    #[test]
    fn parameters_are_judged_as_the_api_judges_them() {
        let table = include_str!("../../../schema/power/parameters.json");
        let rows: Vec<Value> = serde_json::from_str(table).expect("a list");
        assert!(rows.len() > 40);
        for row in rows {
            let driver = row["driver"].as_str().unwrap();
            let parameters = row["parameters"].to_string();
            let parsed = Operation::parse([0; 16], driver, PowerCommand::Query, &parameters);
            let wrong = match &parsed {
                Ok(_) => None,
                Err(PowerError::Parameters { name, .. }) => Some(*name),
                Err(error) => panic!("{row}: {error}"),
            };
            assert_eq!(wrong, row["wrong"].as_str(), "{row}");
        }
    }

    #[test]
    fn secrets_are_in_no_debug_text() {
        let json = r#"{"power_address":"h","power_pass":"hush-pass","k_g":"hush-kg"}"#;
        let operation = Operation::parse([0; 16], "ipmi", PowerCommand::On, json).unwrap();
        assert!(!format!("{operation:?}").contains("hush"));
        let json = r#"{"power_on_uri":"http://h/1","power_off_uri":"http://h/0",
            "power_query_uri":"http://h/q","power_pass":"hush","power_token":"hush-token"}"#;
        let operation = Operation::parse([0; 16], "webhook", PowerCommand::On, json).unwrap();
        assert!(!format!("{operation:?}").contains("hush"));
        let error = Operation::parse([0; 16], "ipmi", PowerCommand::On, r#"{"power_pass":hush}"#);
        assert!(!format!("{:?}", error.unwrap_err()).contains("hush"));
    }
}
