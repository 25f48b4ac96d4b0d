//! `pointsman`: a WebAssembly-plugin policy router for language models.
//!
//! Wiring only: what the program is made of is in `crates/`.

mod admin;
mod app;
mod check;
mod cli;
mod config;
mod facts;
mod import;
mod policy;
mod reload;
mod shutdown;
mod telemetry;

use std::process::ExitCode;

use clap::Parser as _;
use pointsman_policy::CompileOrders;

use crate::cli::{Cli, Command, CompilePolicy};

/// Exit code for a configuration that cannot be used (`EX_CONFIG` of sysexits.h).
const BAD_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(serve) => app::serve(&serve),
        Command::Check(check) => check::check(&check),
        Command::Policy(command) => policy::policy(command),
        Command::ImportEnv(options) => import::import_env(&options),
        Command::Keeper => return pointsman_fleet::keeper_main(std::io::stdin()),
        Command::CompilePolicy(CompilePolicy { memory, cpu, parent }) => {
            let orders = CompileOrders { memory, cpu, parent };
            return pointsman_policy::compile_main(orders, std::io::stdin(), std::io::stdout());
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the one place where the program says why it ends")]
            {
                eprintln!("{error:#}");
            }
            if error.is::<config::ConfigError>() || error.is::<check::BadPolicies>() {
                ExitCode::from(BAD_CONFIG)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
