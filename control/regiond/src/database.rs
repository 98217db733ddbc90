//! The region's database: the operator's PostgreSQL, or a private cluster in the state folder.

use anyhow::Context;
use sqlx::PgPool;
use store::cluster::{Cluster, ClusterError};

use crate::config::Config;

/// Measured to be enough while no transaction spans anything but SQL.
const CONNECTIONS_MAX: u32 = 32;

pub struct Database {
    pub pool: PgPool,
    /// The private cluster, where this process runs it.
    cluster: Option<Cluster>,
}

impl Database {
    /// For `regiond run`: owns the private cluster, and is refused when another process does.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let (url, cluster) = match &config.database.url {
            Some(url) => (url.clone(), None),
            None => {
                let cluster = Cluster::start(&config.database_dir())
                    .await
                    .context("starting the private PostgreSQL cluster")?;
                if cluster.adopted() {
                    tracing::info!("adopted the PostgreSQL server that was left running");
                }
                (cluster.url(), Some(cluster))
            }
        };
        Self::connect(config, &url, cluster).await
    }

    /// For one-off commands: shares the cluster of a running regiond, or starts it for a moment.
    pub async fn open_shared(config: &Config) -> anyhow::Result<Self> {
        if config.database.url.is_some() {
            return Self::open(config).await;
        }
        match Cluster::start(&config.database_dir()).await {
            Ok(cluster) => {
                let url = cluster.url();
                Self::connect(config, &url, Some(cluster)).await
            }
            Err(ClusterError::InUse { folder }) => {
                Self::connect(config, &store::cluster::url(&folder), None).await
            }
            Err(error) => Err(error).context("starting the private PostgreSQL cluster"),
        }
    }

    async fn connect(config: &Config, url: &str, cluster: Option<Cluster>) -> anyhow::Result<Self> {
        let connections_max = config.database.connections_max.unwrap_or(CONNECTIONS_MAX);
        let pool = store::connect(url, connections_max)
            .await
            .context("opening the database")?;
        Ok(Self { pool, cluster })
    }

    /// Closes the pool and ends the private cluster in good order.
    pub async fn close(self) {
        self.pool.close().await;
        if let Some(mut cluster) = self.cluster
            && let Err(error) = cluster.stop().await
        {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "stopping PostgreSQL"
            );
        }
    }
}
