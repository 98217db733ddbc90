//! The `webhook` driver: power through three URIs of somebody's own service, as MAAS does it.
//!
//! Query is a GET whose body is matched against two patterns; on and off are POSTs. Redirects are not
//! followed and proxies of the environment not used: they would carry the credentials elsewhere.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Url, redirect};
use secrecy::ExposeSecret;

use crate::parameters::WebhookParameters;
use crate::steps::{Actuator, Switch};
use crate::{PowerError, PowerState};

/// Longest answer that is looked at.
const BODY_BYTES_MAX: usize = 64 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) struct Webhook<'a> {
    parameters: &'a WebhookParameters,
    client: Client,
    answered: bool,
}

impl<'a> Webhook<'a> {
    pub fn new(parameters: &'a WebhookParameters) -> Result<Self, PowerError> {
        // The one provider of this product; an error says that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .timeout(REQUEST_TIMEOUT)
            .tls_danger_accept_invalid_certs(!parameters.verify_ssl)
            .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|_| PowerError::Parameters {
                name: "power_verify_ssl",
                problem: "no TLS client can be made with it",
            })?;
        Ok(Self {
            parameters,
            client,
            answered: false,
        })
    }

    fn request(&self, method: Method, uri: &Url) -> RequestBuilder {
        let request = self
            .client
            .request(method, uri.clone())
            .header("Accept", "application/json");
        let token = self.parameters.token.expose_secret();
        match (token.is_empty(), self.parameters.user.is_empty()) {
            (false, _) => request.bearer_auth(token),
            (true, false) => request.basic_auth(
                &self.parameters.user,
                Some(self.parameters.password.expose_secret()),
            ),
            (true, true) => request,
        }
    }

    async fn send(
        &mut self,
        command: &'static str,
        request: RequestBuilder,
    ) -> Result<String, PowerError> {
        let bmc = || self.parameters.name.clone();
        // reqwest's own error text holds the URI, and that may hold credentials.
        let unreachable = || PowerError::Unreachable {
            bmc: bmc(),
            source: None,
        };
        let mut response = request.send().await.map_err(|_| unreachable())?;
        self.answered = true;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            return Err(PowerError::HttpStatus {
                bmc: bmc(),
                command,
                status,
            });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| unreachable())? {
            body.extend(chunk.iter().take(BODY_BYTES_MAX - body.len()));
            if body.len() == BODY_BYTES_MAX {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}

impl Actuator for Webhook<'_> {
    async fn state(&mut self) -> Result<PowerState, PowerError> {
        let request = self.request(Method::GET, &self.parameters.query_uri);
        let body = self.send("query", request).await?;
        // On first, as MAAS matches.
        Ok(if self.parameters.on_pattern.is_in(&body) {
            PowerState::On
        } else if self.parameters.off_pattern.is_in(&body) {
            PowerState::Off
        } else {
            PowerState::Unknown
        })
    }

    async fn switch(&mut self, to: Switch) -> Result<(), PowerError> {
        let (command, uri) = match to {
            Switch::On => ("on", &self.parameters.on_uri),
            Switch::Off | Switch::SoftOff => ("off", &self.parameters.off_uri),
        };
        let request = self.request(Method::POST, uri);
        self.send(command, request).await.map(drop)
    }

    async fn boot_from_network(&mut self) -> Result<String, PowerError> {
        Ok("a webhook cannot choose the boot device".to_owned())
    }

    fn answered(&self) -> bool {
        self.answered
    }
}
