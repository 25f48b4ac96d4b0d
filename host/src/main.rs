//! `pointsman`: a WebAssembly-plugin policy router for language models.
//!
//! Wiring only: what the program is made of is in `crates/`.

mod admin;
mod app;
mod chains;
mod check;
mod cli;
mod config;
mod facts;
mod import;
mod policy;
mod reload;
mod replay;
mod shutdown;
mod simulate;
mod telemetry;

use std::process::ExitCode;

use clap::Parser as _;
use pointsman_policy::{CompileOrders, Metering};

use crate::cli::{Cli, Command, CompilePolicy};

/// Exit code for a configuration, or a policy, that cannot be used (`EX_CONFIG` of sysexits.h).
const BAD_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = |()| ExitCode::SUCCESS;
    let result = match cli.command {
        Command::Serve(serve) => app::serve(&serve).map(done),
        Command::Check(check) => check::check(&check).map(done),
        Command::Policy(command) => policy::policy(command),
        Command::Simulate(options) => simulate::simulate(&options),
        Command::Replay(options) => replay::replay(&options),
        Command::ImportEnv(options) => import::import_env(&options).map(done),
        Command::Watchdog => return pointsman_fleet::keeper_main(std::io::stdin()),
        Command::CompilePolicy(CompilePolicy { memory, cpu, parent, fuel }) => {
            let metering = if fuel { Metering::Fuel } else { Metering::Wall };
            let orders = CompileOrders { memory, cpu, parent, metering };
            return pointsman_policy::compile_main(orders, std::io::stdin(), std::io::stdout());
        }
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            #[expect(
                clippy::print_stderr,
                reason = "the one place where the program says why it ends"
            )]
            {
                eprintln!("{error:#}");
            }
            let bad_config = error.is::<config::ConfigError>()
                || error.is::<check::BadPolicies>()
                || error.is::<policy::CannotLoad>()
                || error.is::<pointsman_simulate::StudyError>()
                || error.is::<replay::CannotReplay>();
            if bad_config { ExitCode::from(BAD_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}
