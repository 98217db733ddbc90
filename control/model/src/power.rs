//! Power: states, commands, and the power types with their parameters under MAAS's names.
//!
//! Which parameters are secret is decided here, once: the store seals those, the API hides them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::ParseError;

mod limits;

/// What was last seen of a machine's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerState {
    On,
    Off,
    Unknown,
    Error,
}

impl PowerState {
    pub fn as_str(self) -> &'static str {
        match self {
            PowerState::On => "on",
            PowerState::Off => "off",
            PowerState::Unknown => "unknown",
            PowerState::Error => "error",
        }
    }
}

impl FromStr for PowerState {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "on" => Ok(PowerState::On),
            "off" => Ok(PowerState::Off),
            "unknown" => Ok(PowerState::Unknown),
            "error" => Ok(PowerState::Error),
            _ => Err(ParseError::new(text, "a power state")),
        }
    }
}

/// What a rack is asked to do. The words are those of the table `work`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerCommand {
    Query,
    On,
    Off,
    Cycle,
    /// Next boot from the network, then on (a cycle if it is on already).
    PxeOn,
}

impl PowerCommand {
    pub fn as_str(self) -> &'static str {
        match self {
            PowerCommand::Query => "query",
            PowerCommand::On => "on",
            PowerCommand::Off => "off",
            PowerCommand::Cycle => "cycle",
            PowerCommand::PxeOn => "pxe_on",
        }
    }
}

impl FromStr for PowerCommand {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "query" => Ok(PowerCommand::Query),
            "on" => Ok(PowerCommand::On),
            "off" => Ok(PowerCommand::Off),
            "cycle" => Ok(PowerCommand::Cycle),
            "pxe_on" => Ok(PowerCommand::PxeOn),
            _ => Err(ParseError::new(text, "a power command")),
        }
    }
}

/// How a machine's power is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerType {
    /// A person switches it.
    Manual,
    /// IPMI 2.0 over LAN.
    Ipmi,
    /// HTTP calls to URLs of the operator's.
    Webhook,
}

/// Every power type there is, in the order that `describe_power_types` shows.
pub const POWER_TYPES: [PowerType; 3] = [PowerType::Ipmi, PowerType::Manual, PowerType::Webhook];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    Text,
    Secret,
    MacAddress,
    Choice(&'static [&'static str]),
}

/// One power parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// MAAS's name.
    pub name: &'static str,
    pub label: &'static str,
    pub kind: ParameterKind,
    pub required: bool,
    pub default: &'static str,
}

const fn text(name: &'static str, label: &'static str) -> Parameter {
    Parameter {
        name,
        label,
        kind: ParameterKind::Text,
        required: false,
        default: "",
    }
}

const fn needed(name: &'static str, label: &'static str) -> Parameter {
    Parameter {
        name,
        label,
        kind: ParameterKind::Text,
        required: true,
        default: "",
    }
}

const fn secret(name: &'static str, label: &'static str) -> Parameter {
    Parameter {
        name,
        label,
        kind: ParameterKind::Secret,
        required: false,
        default: "",
    }
}

const IPMI: &[Parameter] = &[
    Parameter {
        name: "power_driver",
        label: "Power driver",
        kind: ParameterKind::Choice(&["LAN_2_0"]),
        required: false,
        default: "LAN_2_0",
    },
    Parameter {
        name: "power_boot_type",
        label: "Power boot type",
        kind: ParameterKind::Choice(&["auto", "legacy", "efi"]),
        required: false,
        default: "auto",
    },
    needed("power_address", "IP address"),
    text("power_user", "Power user"),
    secret("power_pass", "Power password"),
    secret("k_g", "K_g BMC key"),
    Parameter {
        name: "cipher_suite_id",
        label: "Cipher Suite ID",
        // Empty: the best that the BMC offers.
        kind: ParameterKind::Choice(&["", "17", "3"]),
        required: false,
        default: "",
    },
    Parameter {
        name: "privilege_level",
        label: "Privilege Level",
        kind: ParameterKind::Choice(&["USER", "OPERATOR", "ADMIN"]),
        required: false,
        default: "OPERATOR",
    },
    text("workaround_flags", "Workaround Flags"),
    Parameter {
        name: "mac_address",
        label: "Power MAC",
        kind: ParameterKind::MacAddress,
        required: false,
        default: "",
    },
    Parameter {
        name: "power_off_mode",
        label: "Power off mode",
        kind: ParameterKind::Choice(&["hard", "soft"]),
        required: false,
        default: "hard",
    },
];

const WEBHOOK: &[Parameter] = &[
    needed("power_on_uri", "URI to power on the node"),
    needed("power_off_uri", "URI to power off the node"),
    needed("power_query_uri", "URI to query the nodes power status"),
    text("power_on_regex", "Regex to confirm the node is on"),
    text("power_off_regex", "Regex to confirm the node is off"),
    text("power_user", "Power user"),
    secret("power_pass", "Power password"),
    secret(
        "power_token",
        "Power token, will be used in place of power user and password",
    ),
    Parameter {
        name: "power_verify_ssl",
        label: "Verify SSL connections with system CA certificates",
        kind: ParameterKind::Choice(&["n", "y"]),
        required: false,
        default: "n",
    },
];

/// Parameters of MAAS's drivers that may come with any power type: clients send what they have. Those that the type does not
/// know are left out.
const ELSEWHERE: [&str; 42] = [
    "blade_id",
    "certificate",
    "cipher_suite_id",
    "instance_name",
    "k_g",
    "key",
    "lpar",
    "mac_address",
    "node_id",
    "node_outlet",
    "outlet_id",
    "password",
    "pdu_type",
    "port",
    "power_address",
    "power_boot_type",
    "power_control",
    "power_driver",
    "power_hwaddress",
    "power_id",
    "power_off_mode",
    "power_off_regex",
    "power_off_uri",
    "power_on_delay",
    "power_on_regex",
    "power_on_uri",
    "power_partition_name",
    "power_pass",
    "power_port",
    "power_protocol",
    "power_query_uri",
    "power_token",
    "power_token_name",
    "power_token_secret",
    "power_user",
    "power_uuid",
    "power_verify_ssl",
    "power_vm_name",
    "privilege_level",
    "project",
    "server_name",
    "workaround_flags",
];

/// Parameters in the two forms that are stored.
#[derive(Clone, Default, PartialEq)]
pub struct SplitParameters {
    /// May be shown.
    pub open: Map<String, Value>,
    /// Must be sealed.
    pub secret: Map<String, Value>,
    /// Of the BMC, when `power_address` is an IP address.
    pub address: Option<IpAddr>,
}

impl fmt::Debug for SplitParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplitParameters")
            .field("open", &self.open)
            .field("secret", &format_args!("<{} hidden>", self.secret.len()))
            .field("address", &self.address)
            .finish()
    }
}

/// Which parameter is wrong and why. The message never holds the value: it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}: {reason}")]
pub struct PowerParametersError {
    pub parameter: String,
    pub reason: &'static str,
}

/// Longest value of one parameter, in octets.
const VALUE_BYTES_MAX: usize = 4096;

impl PowerType {
    /// MAAS's name.
    pub fn as_str(self) -> &'static str {
        match self {
            PowerType::Manual => "manual",
            PowerType::Ipmi => "ipmi",
            PowerType::Webhook => "webhook",
        }
    }

    pub fn description(self) -> &'static str {
        match self {
            PowerType::Manual => "Manual",
            PowerType::Ipmi => "IPMI",
            PowerType::Webhook => "Webhook",
        }
    }

    pub fn parameters(self) -> &'static [Parameter] {
        match self {
            PowerType::Manual => &[],
            PowerType::Ipmi => IPMI,
            PowerType::Webhook => WEBHOOK,
        }
    }

    /// Whether a region can switch and query it.
    pub fn is_driven(self) -> bool {
        self != PowerType::Manual
    }

    /// Whether a parameter of this name must be sealed. A name that is secret for any type is secret
    /// for all: a type may be changed while the parameters stay.
    pub fn is_secret(name: &str) -> bool {
        POWER_TYPES
            .iter()
            .flat_map(|power_type| power_type.parameters())
            .any(|parameter| parameter.name == name && parameter.kind == ParameterKind::Secret)
    }

    /// Checks the parameters and splits them. Names that no driver of MAAS's knows are refused, another driver's left out; a
    /// missing optional one gets its default; a port may follow the address (`10.0.0.1:9001`, `[fd00::1]:623`).
    pub fn split(
        self,
        parameters: &Map<String, Value>,
    ) -> Result<SplitParameters, PowerParametersError> {
        let wrong = |parameter: &str, reason| PowerParametersError {
            parameter: parameter.chars().take(64).collect(),
            reason,
        };
        for name in parameters.keys() {
            let is_own = self
                .parameters()
                .iter()
                .any(|parameter| parameter.name == name);
            if !is_own && !ELSEWHERE.contains(&name.as_str()) {
                return Err(wrong(name, "Unknown power parameter."));
            }
        }
        let mut split = SplitParameters::default();
        for parameter in self.parameters() {
            let value = match parameters.get(parameter.name) {
                None | Some(Value::Null) => parameter.default.to_owned(),
                Some(Value::String(value)) => value.clone(),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
                // MAAS takes lists for multiple choices (workaround_flags).
                Some(Value::Array(values)) => values
                    .iter()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join(","),
                Some(Value::Object(_)) => return Err(wrong(parameter.name, "Not a valid value.")),
            };
            let value = match parameter.name {
                "power_address" => value.trim().to_owned(),
                _ => value,
            };
            if value.len() > VALUE_BYTES_MAX || value.contains('\0') {
                return Err(wrong(parameter.name, "Not a valid value."));
            }
            if value.is_empty() {
                if parameter.required {
                    return Err(wrong(parameter.name, "This field is required."));
                }
                continue;
            }
            if let Some(reason) = limits::refusal(self, parameter.name, &value) {
                return Err(wrong(parameter.name, reason));
            }
            match parameter.kind {
                ParameterKind::Choice(choices) if !choices.contains(&value.as_str()) => {
                    return Err(wrong(parameter.name, "Not one of the available choices."));
                }
                ParameterKind::MacAddress if value.parse::<crate::Mac>().is_err() => {
                    return Err(wrong(parameter.name, "Not a valid MAC address."));
                }
                ParameterKind::Secret => {
                    split
                        .secret
                        .insert(parameter.name.to_owned(), Value::String(value));
                }
                _ => {
                    if parameter.name == "power_address" {
                        split.address = address_of(&value);
                    }
                    split
                        .open
                        .insert(parameter.name.to_owned(), Value::String(value));
                }
            }
        }
        Ok(split)
    }
}

/// The IP address in `10.0.0.1`, `10.0.0.1:9001`, `fd00::1`, `[fd00::1]` or `[fd00::1]:623`.
fn address_of(text: &str) -> Option<IpAddr> {
    text.parse()
        .ok()
        .or_else(|| {
            text.parse::<std::net::SocketAddr>()
                .ok()
                .map(|address| address.ip())
        })
        .or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok())
}

impl FromStr for PowerType {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        POWER_TYPES
            .into_iter()
            .find(|power_type| power_type.as_str() == text)
            .ok_or_else(|| ParseError::new(text, "a power type"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn secrets_are_split_off() {
        let split = PowerType::Ipmi
            .split(&map(json!({
                "power_address": "10.99.0.1:9001", "power_user": "maas", "power_pass": "hush", "k_g": "deep",
                "workaround_flags": ["opensesspriv", "authcap"], "cipher_suite_id": 17,
            })))
            .unwrap();
        assert_eq!(split.address, Some("10.99.0.1".parse().unwrap()));
        assert_eq!(split.open["workaround_flags"], "opensesspriv,authcap");
        assert_eq!(split.open["cipher_suite_id"], "17");
        assert_eq!(split.open["power_driver"], "LAN_2_0");
        assert_eq!(
            Value::Object(split.secret.clone()),
            json!({"power_pass": "hush", "k_g": "deep"})
        );
        assert!(
            !Value::Object(split.open.clone())
                .to_string()
                .contains("hush")
        );
        assert!(!format!("{split:?}").contains("hush"));
    }

    #[test]
    fn wrong_parameters_are_named_without_their_value() {
        let cases = [
            (PowerType::Ipmi, json!({}), "power_address"),
            (
                PowerType::Ipmi,
                json!({"power_address": ""}),
                "power_address",
            ),
            (
                PowerType::Ipmi,
                json!({"power_address": "a", "power_driver": "hush"}),
                "power_driver",
            ),
            (
                PowerType::Ipmi,
                json!({"power_address": "a", "mac_address": "hush"}),
                "mac_address",
            ),
            (
                PowerType::Ipmi,
                json!({"power_address": {"hush": 1}}),
                "power_address",
            ),
            (
                PowerType::Ipmi,
                json!({"power_address": "a\0hush"}),
                "power_address",
            ),
            (PowerType::Manual, json!({"nosuch": "hush"}), "nosuch"),
            (
                PowerType::Webhook,
                json!({"power_on_uri": "http://a"}),
                "power_off_uri",
            ),
        ];
        for (power_type, parameters, want) in cases {
            let error = power_type.split(&map(parameters)).unwrap_err();
            assert_eq!(error.parameter, want);
            assert!(!error.to_string().contains("hush"), "{error}");
        }
    }

    #[test]
    fn parameters_of_another_driver_are_left_out() {
        for (power_type, parameters, left) in [
            (
                PowerType::Manual,
                json!({"power_pass": "hush", "power_id": 3}),
                0,
            ),
            (
                PowerType::Ipmi,
                json!({"power_address": "10.0.0.1", "node_id": "1", "power_on_uri": "http://a"}),
                6,
            ),
        ] {
            let split = power_type.split(&map(parameters)).unwrap();
            assert!(
                split.open.len() <= left && split.secret.is_empty(),
                "{split:?}"
            );
            assert!(
                split
                    .open
                    .keys()
                    .all(|name| { power_type.parameters().iter().any(|own| own.name == name) })
            );
        }
    }

    #[test]
    fn addresses_may_have_ports() {
        for (text, want) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("10.0.0.1:623", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("[fd00::1]", Some("fd00::1")),
            ("[fd00::1]:623", Some("fd00::1")),
            ("bmc.example", None),
        ] {
            assert_eq!(
                address_of(text),
                want.map(|ip| ip.parse().unwrap()),
                "{text}"
            );
        }
    }

    #[test]
    fn words_come_back() {
        for power_type in POWER_TYPES {
            assert_eq!(power_type.as_str().parse(), Ok(power_type));
        }
        for command in ["query", "on", "off", "cycle", "pxe_on"] {
            assert_eq!(command.parse::<PowerCommand>().unwrap().as_str(), command);
        }
        for state in ["on", "off", "unknown", "error"] {
            assert_eq!(state.parse::<PowerState>().unwrap().as_str(), state);
        }
        assert!("redfish".parse::<PowerType>().is_err());
    }
}
