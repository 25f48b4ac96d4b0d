//! Streams at the pace of a model, for benchmarks: the engine, or its clients, as a process of its
//! own, so that the CPU time of each process is its own.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use pointsman_tests::streams::{FrameEngine, StreamShape, measure, raise_descriptor_limit};
use serde_json::json;

/// Serves or reads streams.
#[derive(Debug, Parser)]
struct Options {
    /// Port on the loopback interface.
    #[arg(long)]
    port: u16,
    /// Frames per second of a stream.
    #[arg(long, default_value_t = 25)]
    rate: u32,
    /// Seconds of a stream.
    #[arg(long, default_value_t = 8)]
    seconds: u32,
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve streams until the process is killed.
    Engine,
    /// Read streams, and print what was received as a line of JSON.
    Clients {
        /// Number of streams, which all run at a time.
        #[arg(long)]
        streams: u32,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    raise_descriptor_limit(2_000);
    let shape = StreamShape {
        frames: options.seconds * options.rate,
        interval: Duration::from_secs(1) / options.rate,
        epoch: Instant::now(),
    };
    match options.role {
        Role::Engine => {
            FrameEngine::start_on(options.port, shape);
            loop {
                pointsman_tests::pause(Duration::from_secs(3600));
            }
        }
        Role::Clients { streams } => {
            // One stream for each client.
            let received = measure(options.port, "a", shape, streams, Duration::ZERO);
            println!("{}", json!({ "frames": received.frames, "lost": received.lost }));
            if received.lost > 0 || received.complete < u64::from(streams) {
                eprintln!("broken streams: {:?}", received.broken);
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
    }
}
