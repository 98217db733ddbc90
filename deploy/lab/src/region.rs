//! Talking to the region from outside the lab: REST calls made by a thread that stands on the region's host.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use ureq::Agent;
use ureq::http::Request;

use crate::oauth::{ApiKey, encode, form};

pub const API_PORT: u16 = 5240;
const API: &str = "/MAAS/api/2.0/";
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// An answer of the region that is not a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub request: String,
    pub status: u16,
    pub text: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {}", self.request, self.status, self.text.trim())
    }
}

impl std::error::Error for Fault {}

/// A client of the region's REST API. Its calls are made one after the other.
#[derive(Debug)]
pub struct Region {
    jobs: Sender<Job>,
    key: Option<ApiKey>,
}

#[derive(Debug)]
struct Job {
    method: &'static str,
    path: String,
    body: Option<String>,
    authorization: Option<String>,
    reply: SyncSender<Result<(u16, String)>>,
}

impl Region {
    /// `namespace` is the region's host. Nothing is sent yet.
    pub fn connect(namespace: &str) -> Result<Self> {
        let path = format!("/run/netns/{namespace}");
        let link = File::open(&path).with_context(|| format!("opening {path}"))?;
        let (jobs, queue) = channel::<Job>();
        let (entered, entry) = sync_channel(1);
        std::thread::Builder::new()
            .name("region-client".to_owned())
            .spawn(move || {
                let moved =
                    move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network));
                let failed = moved.is_err();
                entered.send(moved).ok();
                if failed {
                    return;
                }
                let agent = Agent::new_with_config(
                    Agent::config_builder()
                        .http_status_as_error(false)
                        .timeout_global(Some(REQUEST_LIMIT))
                        // A region that was restarted has forgotten the connections.
                        .max_idle_connections(0)
                        .build(),
                );
                for job in queue {
                    job.reply.send(send(&agent, &job)).ok();
                }
            })
            .context("starting the client thread")?;
        entry
            .recv()
            .context("the client thread died")?
            .with_context(|| format!("entering {path}"))?;
        Ok(Self { jobs, key: None })
    }

    pub fn set_key(&mut self, text: &str) -> Result<()> {
        self.key = Some(ApiKey::parse(text)?);
        Ok(())
    }

    /// The API key as text, where there is one.
    pub fn key(&self) -> Option<String> {
        self.key.as_ref().map(ApiKey::text)
    }

    /// Status and text of any request below the host. Errors are of the connection.
    pub fn raw(
        &self,
        method: &'static str,
        path: &str,
        body: Option<String>,
    ) -> Result<(u16, String)> {
        let (reply, answer) = sync_channel(1);
        let authorization = self.key.as_ref().map(ApiKey::header).transpose()?;
        let job = Job {
            method,
            path: path.to_owned(),
            body,
            authorization,
            reply,
        };
        self.jobs
            .send(job)
            .map_err(|_| anyhow!("the client thread is gone"))?;
        answer.recv().context("the client thread died")?
    }

    /// GET below the API's root, with query parameters.
    pub fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        let path = if query.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{}", form(query))
        };
        self.call("GET", &path, None)
    }

    /// POST; `operation` is the MAAS `op`, empty for a plain create.
    pub fn post(&self, path: &str, operation: &str, fields: &[(&str, &str)]) -> Result<Value> {
        let path = match operation {
            "" => path.to_owned(),
            operation => format!("{path}?op={}", encode(operation)),
        };
        self.call("POST", &path, Some(form(fields)))
    }

    pub fn put(&self, path: &str, fields: &[(&str, &str)]) -> Result<Value> {
        self.call("PUT", path, Some(form(fields)))
    }

    /// The body as JSON, or as a string where it is none. Not a success: a [`Fault`].
    fn call(&self, method: &'static str, path: &str, body: Option<String>) -> Result<Value> {
        let (status, text) = self
            .raw(method, &format!("{API}{path}"), body)
            .with_context(|| format!("{method} {path}"))?;
        if !(200..300).contains(&status) {
            return Err(Fault {
                request: format!("{method} {path}"),
                status,
                text,
            }
            .into());
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

fn send(agent: &Agent, job: &Job) -> Result<(u16, String)> {
    let mut request = Request::builder()
        .method(job.method)
        .uri(format!("http://127.0.0.1:{API_PORT}{}", job.path))
        .header("Accept", "application/json");
    if let Some(authorization) = &job.authorization {
        request = request.header("Authorization", authorization);
    }
    let answer = match &job.body {
        Some(body) => {
            let request = request.header("Content-Type", "application/x-www-form-urlencoded");
            agent.run(request.body(body.clone()).context("building the request")?)
        }
        None => agent.run(request.body(()).context("building the request")?),
    };
    let mut answer = answer.context("asking the region")?;
    let status = answer.status().as_u16();
    let text = answer
        .body_mut()
        .read_to_string()
        .context("reading the region's answer")?;
    Ok((status, text))
}
