//! Power types and parameters in forms: `power_type`, `power_parameters_<name>`, `power_parameters` (JSON).

use model::{PowerType, SplitParameters};
use serde_json::{Map, Value};
use sqlx::PgConnection;
use store::bmc::{self, Bmc};
use store::seal::Sealer;

use crate::body::Form;
use crate::error::ApiError;

/// What a form says about power, not yet checked. Not `Debug`: it may hold a password.
pub struct PowerForm {
    /// None: nothing is said. `Some(None)`: no power type.
    power_type: Option<Option<PowerType>>,
    parameters: Map<String, Value>,
}

/// What MAAS's clients may add that is no parameter.
const NO_PARAMETERS: [&str; 2] = ["skip_check", "skip_bmc_check"];

impl PowerForm {
    pub fn read(form: &Form) -> Result<Self, ApiError> {
        let power_type = match form.get("power_type").map(str::trim) {
            None => None,
            Some("") => Some(None),
            Some(text) => {
                let wrong = |_| {
                    ApiError::field(
                        "power_type",
                        "Select a valid choice: ipmi, manual and webhook are available.",
                    )
                };
                Some(Some(text.parse().map_err(wrong)?))
            }
        };
        let mut parameters = Map::new();
        if let Some(json) = form.filled("power_parameters") {
            match serde_json::from_str(json) {
                Ok(Value::Object(object)) => parameters = object,
                _ => {
                    let message = "Enter a JSON object.";
                    return Err(ApiError::field("power_parameters", message));
                }
            }
        }
        for (name, value) in form.fields() {
            let Some(name) = name.strip_prefix("power_parameters_") else {
                continue;
            };
            if !NO_PARAMETERS.contains(&name) {
                parameters.insert(name.to_owned(), Value::from(value));
            }
        }
        Ok(Self {
            power_type,
            parameters,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.power_type.is_none() && self.parameters.is_empty()
    }

    /// For a machine that has no BMC yet.
    pub fn create(&self) -> Result<Option<(PowerType, SplitParameters)>, ApiError> {
        match self.power_type.flatten() {
            None if self.parameters.is_empty() => Ok(None),
            None => Err(ApiError::field(
                "power_type",
                "Power parameters need a power type.",
            )),
            Some(power_type) => Ok(Some((power_type, split(power_type, &self.parameters)?))),
        }
    }

    /// For a machine that may have one: what is not said stays, unless the type changes; then only what the new
    /// type knows does.
    pub fn update(
        &self,
        sealer: &Sealer,
        old: Option<&Bmc>,
    ) -> Result<Option<(PowerType, SplitParameters)>, ApiError> {
        let Some(old) = old else { return self.create() };
        let power_type = match self.power_type {
            None => old.power_type,
            // A BMC is not taken away: MAAS's "no type" is one that does nothing.
            Some(None) => PowerType::Manual,
            Some(Some(power_type)) => power_type,
        };
        let known = |name: &str| {
            power_type
                .parameters()
                .iter()
                .any(|known| known.name == name)
        };
        let mut merged = old.parameters_with_secrets(sealer)?;
        merged.retain(|name, _| known(name));
        merged.extend(self.parameters.clone());
        Ok(Some((power_type, split(power_type, &merged)?)))
    }
}

fn split(
    power_type: PowerType,
    parameters: &Map<String, Value>,
) -> Result<SplitParameters, ApiError> {
    power_type
        .split(parameters)
        .map_err(|error| ApiError::field(error.parameter.as_str(), error.reason))
}

/// All of a machine's parameters, secrets too: for administrators.
pub async fn parameters(
    db: &mut PgConnection,
    sealer: &Sealer,
    machine: &model::SystemId,
) -> Result<Value, ApiError> {
    match bmc::of_machine(db, machine).await? {
        Some(bmc) => Ok(Value::Object(bmc.parameters_with_secrets(sealer)?)),
        None => Ok(Value::Object(Map::new())),
    }
}
