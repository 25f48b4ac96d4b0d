//! Arguments of `pointsman request …`.

use clap::Subcommand;

use crate::cli::policy::HostOptions;

#[derive(Debug, Subcommand)]
pub(crate) enum Request {
    /// List the requests in flight of a running host.
    List(HostOptions),
    /// Cancel a request: its client gets an error, and the engine stops working on it.
    Cancel {
        /// Id of the request.
        id: String,
        #[command(flatten)]
        host: HostOptions,
    },
}
