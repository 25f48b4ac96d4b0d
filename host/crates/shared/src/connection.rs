//! A connection to the store: one server, the master that a Sentinel names, or a cluster.

use std::time::Duration;

use futures_util::future::join_all;
use pointsman_spec::SharedAddress;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    RedisError, RedisResult, TlsCertificates, TlsMode, Value,
};

use crate::batch::{Batch, BatchReply};
use crate::script;
use crate::settings::Settings;

/// Maximum time to connect, with the questions to Sentinels or the nodes of a cluster.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time of a round.
const ROUND_TIMEOUT: Duration = Duration::from_secs(1);

/// A command failed. Contains no credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the store did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("the store failed: {0}")]
    Failed(#[from] RedisError),
    #[error("unexpected reply of the store")]
    Reply,
}

impl StoreError {
    /// Returns true if the server works, so that another connection would not help.
    pub(crate) fn keeps_connection(&self) -> bool {
        match self {
            Self::Timeout(_) => false,
            Self::Reply => true,
            // A master that has become a replica answers, but is the wrong one.
            Self::Failed(error) => matches!(error.code(), Some("OOM" | "BUSY" | "LOADING")),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Connection {
    Node(MultiplexedConnection),
    Cluster(Cluster),
}

#[derive(Clone)]
pub(crate) struct Cluster(ClusterConnection);

impl std::fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Cluster(..)")
    }
}

impl Connection {
    pub(crate) async fn open(settings: &Settings) -> Result<Self, StoreError> {
        limited(CONNECT_TIMEOUT, connect(settings)).await
    }

    /// Sends batches, at a time and in their order, and returns a reply for each.
    pub(crate) async fn run(
        &self,
        batches: &[Batch],
        replica: u64,
        round: u64,
    ) -> Vec<Result<BatchReply, StoreError>> {
        let run = |batch| async move {
            let command = script::command(batch, replica, round, false);
            let value = match self.query(&command).await {
                Err(error) if error.code() == Some("NOSCRIPT") => {
                    self.query(&script::command(batch, replica, round, true)).await?
                }
                value => value?,
            };
            script::parse(&value).ok_or(StoreError::Reply)
        };
        let run = |batch| async move {
            match tokio::time::timeout(ROUND_TIMEOUT, run(batch)).await {
                Ok(reply) => reply,
                Err(_) => Err(StoreError::Timeout(ROUND_TIMEOUT)),
            }
        };
        join_all(batches.iter().map(run)).await
    }

    /// Returns which entries a bucket has, at most `max`.
    pub(crate) async fn index(&self, base: &str, max: usize) -> Result<Vec<String>, StoreError> {
        let command = script::index_command(base, max);
        let value = limited(ROUND_TIMEOUT, self.query(&command)).await?;
        redis::from_redis_value(value).map_err(|_| StoreError::Reply)
    }

    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        self.limited_query(&redis::cmd("PING")).await.map(|_| ())
    }

    /// Runs a command within the maximum time of a round.
    pub(crate) async fn limited_query(&self, command: &Cmd) -> Result<Value, StoreError> {
        limited(ROUND_TIMEOUT, self.query(command)).await
    }

    pub(crate) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Node(connection) => command.query_async(&mut connection.clone()).await,
            Self::Cluster(Cluster(connection)) => {
                command.query_async(&mut connection.clone()).await
            }
        }
    }
}

async fn limited<T>(
    limit: Duration,
    work: impl Future<Output = RedisResult<T>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(StoreError::Failed),
        Err(_) => Err(StoreError::Timeout(limit)),
    }
}

async fn connect(settings: &Settings) -> RedisResult<Connection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(ROUND_TIMEOUT));
    let client = match &settings.address {
        SharedAddress::Single(url) => match certificates(settings) {
            None => Client::open(url.as_str())?,
            Some(certificates) => Client::build_with_tls(url.as_str(), certificates)?,
        },
        SharedAddress::Sentinel { sentinels, master, node } => {
            let client = sentinel(settings, sentinels, master, node.as_deref());
            client?.async_get_client().await?
        }
        SharedAddress::Cluster(urls) => {
            let mut builder = ClusterClientBuilder::new(urls.iter().map(String::as_str))
                .connection_timeout(CONNECT_TIMEOUT)
                .response_timeout(ROUND_TIMEOUT)
                .retries(2);
            if let Some(certificates) = certificates(settings) {
                builder = builder.certs(certificates);
            }
            let connection = builder.build()?.get_async_connection().await?;
            return Ok(Connection::Cluster(Cluster(connection)));
        }
    };
    let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    Ok(Connection::Node(connection))
}

fn certificates(settings: &Settings) -> Option<TlsCertificates> {
    let root_cert = Some(settings.ca.clone()?);
    Some(TlsCertificates { client_tls: None, root_cert })
}

/// Returns a client that asks Sentinels for the master. The credentials of the first Sentinel are
/// those of all.
fn sentinel(
    settings: &Settings,
    sentinels: &[String],
    master: &str,
    node: Option<&str>,
) -> RedisResult<SentinelClient> {
    let info = |url: &str| url.into_connection_info();
    let infos = sentinels.iter().map(|url| info(url)).collect::<RedisResult<Vec<_>>>()?;
    let addresses = infos.iter().map(|info| info.addr().clone());
    let kind = SentinelServerType::Master;
    let mut builder = SentinelClientBuilder::new(addresses, master, kind)?;
    if let Some(first) = infos.first().map(ConnectionInfo::redis_settings) {
        if let Some(user) = first.username() {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = first.password() {
            builder = builder.set_client_to_sentinel_password(password);
        }
    }
    if let Some(node) = node.map(info).transpose()? {
        let redis = node.redis_settings();
        builder = builder.set_client_to_redis_db(redis.db());
        if let Some(user) = redis.username() {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = redis.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if matches!(node.addr(), ConnectionAddr::TcpTls { .. }) {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
    }
    if let Some(certificates) = certificates(settings) {
        builder = builder
            .set_client_to_sentinel_certificates(certificates.clone())
            .set_client_to_redis_certificates(certificates);
    }
    builder.build()
}
