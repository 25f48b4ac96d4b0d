//! The listeners for clients: binds their addresses, and reads the files of their TLS.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use pointsman_config::{Address, ClientCertificates, Listener};
use pointsman_files::write_atomic;
use pointsman_gateway::{
    ClientListener, ListenAddress, ListenerSettings, SocketFile, Tls, TlsFiles,
};
use tokio::net::TcpListener;

use crate::cli::Serve;
use crate::gateway_settings::of_listener;
use crate::sockets::{ListenerId, Socket, Sockets};

/// A listener that accepts connections.
pub(crate) struct Bound {
    /// The name by which the next host finds the socket.
    pub(crate) id: ListenerId,
    pub(crate) listener: ClientListener,
    pub(crate) address: ListenAddress,
    pub(crate) settings: ListenerSettings,
}

impl Bound {
    pub(crate) fn new(
        id: ListenerId,
        listener: ClientListener,
        mut settings: ListenerSettings,
    ) -> Result<Self> {
        let address = listener.address().context("failed to read the address of a listener")?;
        settings.addresses.push(address.to_string());
        Ok(Self { id, listener, address, settings })
    }
}

/// Reads the files of the listeners' TLS, and binds the addresses that no other process has passed.
pub(crate) async fn open(
    options: &Serve,
    listeners: &[Listener],
    sockets: &mut Sockets,
) -> Result<Vec<Bound>> {
    let tls = read_tls(&options.config, listeners)?;
    bind(listeners, options.listen, tls, sockets).await
}

/// Binds the addresses. `first` replaces the address of the first listener. `tls` has an entry for
/// each listener.
async fn bind(
    listeners: &[Listener],
    first: Option<SocketAddr>,
    tls: Vec<Option<Arc<Tls>>>,
    sockets: &mut Sockets,
) -> Result<Vec<Bound>> {
    let mut bound = Vec::with_capacity(listeners.len());
    for (index, (listener, tls)) in listeners.iter().zip(tls).enumerate() {
        let address = first.filter(|_| index == 0).map(Address::Tcp);
        let address = address.as_ref().unwrap_or(&listener.address);
        let id = ListenerId::Clients(address.to_string());
        let inherited = sockets.take(&id);
        let socket = match address {
            Address::Tcp(address) => bind_tcp(*address, inherited)
                .await
                .with_context(|| format!("cannot listen on {address}"))?
                .into(),
            Address::Unix { path, mode } => match inherited {
                Some(socket) => inherit_unix(path, socket, *mode)?.into(),
                None => SocketFile::bind_clients(path, *mode)?.into(),
            },
        };
        let listening = ClientListener::with_tls(socket, tls)
            .with_http2(listener.http2)
            .with_proxy_protocol(listener.proxy_protocol);
        bound.push(Bound::new(id, listening, of_listener(listener))?);
    }
    Ok(bound)
}

/// Listens on a TCP address, with the socket of another process if it has one.
pub(crate) async fn bind_tcp(
    address: SocketAddr,
    inherited: Option<Socket>,
) -> std::io::Result<TcpListener> {
    let Some(Socket { descriptor, .. }) = inherited else {
        return TcpListener::bind(address).await;
    };
    let listener = std::net::TcpListener::from(descriptor);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Listens on a Unix socket of another process, whose file gets this mode unless the service
/// manager has it.
pub(crate) fn inherit_unix(path: &Path, socket: Socket, mode: u32) -> std::io::Result<SocketFile> {
    let Socket { descriptor, is_activated } = socket;
    SocketFile::from_other_host(path, descriptor, (!is_activated).then_some(mode))
}

/// An error in the files of a listener's TLS, in the form of all other errors of a configuration.
#[derive(Debug)]
pub(crate) struct InvalidTls(String);

impl fmt::Display for InvalidTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidTls {}

/// Reads the files of the listeners' TLS. `file` is the configuration, for errors.
///
/// # Errors
/// All files that cannot be used.
pub(crate) fn read_tls(
    file: &Path,
    listeners: &[Listener],
) -> Result<Vec<Option<Arc<Tls>>>, InvalidTls> {
    let mut errors = Vec::new();
    let read = listeners.iter().map(|listener| {
        let tls = listener.tls.as_ref()?;
        let files = TlsFiles {
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
            client_ca: tls.client_ca.clone(),
            client_certificates_optional: match tls.client_certificates {
                ClientCertificates::Required => false,
                ClientCertificates::Optional => true,
            },
        };
        match Tls::read(files, listener.http2) {
            Ok(tls) => Some(Arc::new(tls)),
            Err(error) => {
                let (line, key) = (tls.location.line(), tls.location.key());
                let file = file.display();
                errors.push(format!("{file}:{line}: {key}: {error} [unavailable]"));
                None
            }
        }
    });
    let read = read.collect();
    if errors.is_empty() { Ok(read) } else { Err(InvalidTls(errors.join("\n"))) }
}

/// Logs where the host listens, and writes the ports for a process that waits for them.
pub(crate) fn announce(
    addresses: &[ListenAddress],
    begun: Instant,
    port_file: Option<&Path>,
) -> Result<()> {
    let startup_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    for address in addresses {
        tracing::info!(event = "listening", %address, startup_ms, "listening on {address}");
    }
    let Some(file) = port_file else { return Ok(()) };
    write_ports(file, addresses)
        .with_context(|| format!("failed to write the ports to {}", file.display()))
}

/// Writes the ports of the TCP listeners, one per line, into a file of which a process that waits
/// for it never reads half.
fn write_ports(file: &Path, addresses: &[ListenAddress]) -> std::io::Result<()> {
    let ports: String = addresses
        .iter()
        .filter_map(|address| match address {
            ListenAddress::Tcp(address) => Some(format!("{}\n", address.port())),
            ListenAddress::Unix(_) => None,
        })
        .collect();
    Ok(write_atomic(file, ports.as_bytes(), 0o644)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn ports_are_written_in_the_order_of_the_listeners() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("port");
        let tcp = |port| ListenAddress::Tcp(([127, 0, 0, 1], port).into());
        let unix = ListenAddress::Unix("/run/api.sock".into());
        write_ports(&file, &[tcp(8000), unix, tcp(443)]).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "8000\n443\n");
    }

    #[test]
    fn unusable_files_are_errors_of_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        let lane = "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"external\"\nurl = \
                    \"http://127.0.0.1:1\"\n";
        let tls = "tls = { certificate = \"none.pem\", key = \"none.pem\" }\n";
        fs::write(&file, format!("[server]\n{tls}{lane}")).unwrap();
        let config = pointsman_config::Config::load(&file).unwrap();
        let error = read_tls(&file, &config.server.listeners).unwrap_err().to_string();
        let place = format!("{}:2: server.tls: ", file.display());
        assert!(error.starts_with(&place) && error.ends_with("[unavailable]"), "{error}");
        assert!(error.contains("none.pem"), "{error}");
    }
}
