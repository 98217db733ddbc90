//! Handle to the racks linked to this process: `Send`, while every Cap'n Proto object stays on the link thread.
//!
//! A call goes through a bounded channel to the connection's own task and comes back by a oneshot.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::{mpsc, oneshot};

use crate::authority::Authority;
use crate::counters::Counters;
use crate::doors::Doors;
use crate::events::Intake;
use crate::lanes::Lanes;
use crate::power::{PowerOperation, PowerReport};
use crate::registry::Registry;
use crate::tls::{self, Admit, ServerIdentity};
use crate::token::{self, Token};
use crate::{LinkError, StartError};

/// Operations waiting for one rack's connection task; past it a call fails with `Busy`.
const QUEUE_MAX: usize = 1024;
/// Over the operation's own deadline, for the report's way back.
pub(crate) const REPORT_GRACE: Duration = Duration::from_secs(2);
/// A rack answers from memory.
pub(crate) const STATS_TIME: Duration = Duration::from_secs(3);

/// What a connection's task is asked to do.
pub(crate) enum Command {
    Power(
        PowerOperation,
        oneshot::Sender<Result<PowerReport, LinkError>>,
    ),
    Stats(oneshot::Sender<Result<Vec<(String, u64)>, LinkError>>),
}

/// Cheap to clone; all clones see the same racks. `Racks::default()` has none, ever (for tests of its callers).
#[derive(Clone, Default)]
pub struct Racks {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    links: Mutex<HashMap<String, Linked>>,
    registry: Arc<Registry>,
    counters: Counters,
    doors: Doors,
    intake: Mutex<Intake>,
    trust: OnceLock<Trust>,
    lanes: OnceLock<Lanes>,
}

/// What this process proves itself and its racks with.
pub(crate) struct Trust {
    pub authority: Authority,
    pub identity: Arc<ServerIdentity>,
}

struct Linked {
    connection: u64,
    commands: mpsc::Sender<Command>,
}

impl Racks {
    pub(crate) fn new(trust: Trust, database_connections: u32) -> Racks {
        let racks = Racks::default();
        // New cells are empty.
        let _ = racks.inner.trust.set(trust);
        let _ = racks.inner.lanes.set(Lanes::new(database_connections));
        racks
    }

    /// The system_ids of racks that said hello to this process and are still linked, sorted.
    pub fn connected(&self) -> Vec<String> {
        let mut racks: Vec<String> = self.lock().keys().cloned().collect();
        racks.sort_unstable();
        racks
    }

    /// Has `rack` do one power operation.
    ///
    /// `Ok` is the rack's own report, also of a failure at the BMC. An error says that the rack gave none: it may or
    /// may not have acted (`LinkError::may_have_acted`).
    pub async fn power(
        &self,
        rack: &str,
        operation: PowerOperation,
    ) -> Result<PowerReport, LinkError> {
        let deadline = operation.deadline + 2 * REPORT_GRACE;
        self.ask(rack, deadline, |answer| Command::Power(operation, answer))
            .await
    }

    /// What `rack` counts: names as its metrics page has them, with their values.
    pub async fn stats(&self, rack: &str) -> Result<Vec<(String, u64)>, LinkError> {
        self.ask(rack, STATS_TIME + REPORT_GRACE, Command::Stats)
            .await
    }

    async fn ask<T>(
        &self,
        rack: &str,
        deadline: Duration,
        command: impl FnOnce(oneshot::Sender<Result<T, LinkError>>) -> Command,
    ) -> Result<T, LinkError> {
        let (answer, report) = oneshot::channel();
        let commands = match self.lock().get(rack) {
            Some(linked) => linked.commands.clone(),
            None => return Err(LinkError::NotConnected),
        };
        commands
            .try_send(command(answer))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => LinkError::Busy,
                mpsc::error::TrySendError::Closed(_) => LinkError::NotConnected,
            })?;
        match tokio::time::timeout(deadline, report).await {
            Ok(Ok(report)) => report,
            Ok(Err(_)) => Err(LinkError::Lost),
            Err(_) => Err(LinkError::Deadline),
        }
    }

    /// Makes an enrolment token (24 h, one use) that leads to every live regiond process.
    pub async fn create_token(
        &self,
        db: &mut PgConnection,
        hostname: Option<&str>,
        created_by: Option<i32>,
    ) -> Result<Token, StartError> {
        let regions: Vec<String> = store::region::live(&mut *db)
            .await?
            .iter()
            .flat_map(crate::region_hosts)
            .map(|(host, process)| crate::host_and_port(&host, process.rpc_port))
            .collect();
        let trust = self.trust().ok_or(StartError::NotStarted)?;
        Ok(token::create(db, &trust.authority, &regions, hostname, created_by).await?)
    }

    /// TLS for the rack-facing HTTPS port: only certificates of our own racks finish a handshake.
    pub fn rack_tls(&self) -> Result<Arc<rustls::ServerConfig>, StartError> {
        let trust = self.trust().ok_or(StartError::NotStarted)?;
        let identity = Arc::clone(&trust.identity);
        Ok(Arc::new(tls::server_config(
            &trust.authority,
            identity,
            Admit::Racks,
        )?))
    }

    /// For metrics.
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// What the rack-facing ports' places hold and have refused, for metrics.
    pub fn places(&self) -> Vec<gate::Numbers> {
        let mut numbers = self.inner.doors.numbers();
        numbers.extend(
            self.inner
                .lanes
                .get()
                .iter()
                .flat_map(|lanes| lanes.numbers()),
        );
        numbers
    }

    pub(crate) fn lanes(&self) -> &Lanes {
        self.inner.lanes.get_or_init(|| Lanes::new(1))
    }

    pub(crate) fn doors(&self) -> &Doors {
        &self.inner.doors
    }

    pub(crate) fn intake(&self) -> std::sync::MutexGuard<'_, Intake> {
        self.inner
            .intake
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn trust(&self) -> Option<&Trust> {
        self.inner.trust.get()
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.inner.registry
    }

    /// A rack's newest connection takes its calls; an older one of the same rack only drains.
    pub(crate) fn insert(&self, rack: &str, connection: u64) -> mpsc::Receiver<Command> {
        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        self.lock().insert(
            rack.to_owned(),
            Linked {
                connection,
                commands,
            },
        );
        queue
    }

    /// `true`: it was the connection that took the rack's calls.
    pub(crate) fn remove(&self, rack: &str, connection: u64) -> bool {
        let mut links = self.lock();
        let is_current = links
            .get(rack)
            .is_some_and(|linked| linked.connection == connection);
        if is_current {
            links.remove(rack);
        }
        is_current
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Linked>> {
        // The map is whole after any panic of a holder: each change is one call.
        self.inner
            .links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
