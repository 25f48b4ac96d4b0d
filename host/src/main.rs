//! `pointsman`: a WebAssembly-plugin policy router for language models.
//!
//! The binary connects the crates in `crates/`, reads the configuration, and implements the
//! commands.

mod admin;
mod app;
mod chains;
mod check;
mod cli;
mod doctor;
mod explain;
mod facts;
mod gateway_settings;
mod guards;
mod handover;
mod health_command;
mod import;
mod in_service;
mod inherited;
mod key;
mod key_source;
mod lane_command;
mod listeners;
mod memory;
mod other_host;
mod output;
mod pick;
mod policy;
mod policy_start;
mod policy_state;
mod records;
mod registry;
mod reload;
mod reload_command;
mod replay;
mod request_command;
mod running;
mod schema;
mod service_manager;
mod shared_state;
mod shell_help;
mod shutdown;
mod simulate;
mod sockets;
mod stamp;
mod startup;
mod state;
mod state_command;
mod stop_limits;
mod store;
mod telemetry;
mod tokens;
mod top;
mod upgrade_command;
mod usage;
mod version;

use std::process::ExitCode;

use clap::Parser as _;
use pointsman_policy::{AddressSpace, CompileArgs, Metering};

use crate::cli::{Cli, Command, CompilePolicy};
use crate::pick::Role;

/// Exit code for an invalid configuration or policy (`EX_CONFIG` of sysexits.h).
const BAD_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let success = |()| ExitCode::SUCCESS;
    let result = match cli.command {
        Command::Serve(serve) => app::serve(&serve, Role::Host).map(success),
        Command::Pick(serve) => app::serve(&serve, Role::Picker).map(success),
        Command::Check(check) => check::check(&check).map(success),
        Command::Doctor(options) => doctor::doctor(&options),
        Command::Health(options) => health_command::health(&options).map(success),
        Command::Reload(options) => reload_command::reload(&options).map(success),
        Command::Upgrade(options) => upgrade_command::upgrade(&options).map(success),
        Command::Policy(command) => policy::policy(command),
        Command::State(command) => state_command::state(command).map(success),
        Command::Lane(command) => lane_command::lane(command).map(success),
        Command::Request(command) => request_command::request(command).map(success),
        Command::Explain(options) => explain::explain(&options).map(success),
        Command::Decide(options) => explain::decide(&options).map(success),
        Command::Top(options) => top::top(&options).map(success),
        Command::Usage(options) => usage::usage(&options).map(success),
        Command::Key(command) => key::key(command).map(success),
        Command::Simulate(options) => simulate::simulate(&options),
        Command::Replay(options) => replay::replay(&options),
        Command::Import(options) => import::import(&options),
        Command::Schema { kind } => schema::print_schema(kind).map(success),
        Command::Completions { shell } => shell_help::completions(shell).map(success),
        Command::Man { dir } => shell_help::man(&dir).map(success),
        Command::Keeper { dir } => {
            return pointsman_fleet::keeper_main(std::io::stdin(), dir.as_deref());
        }
        Command::CompilePolicy(CompilePolicy {
            memory,
            cpu,
            parent,
            fuel,
            limited_address_space,
        }) => {
            let metering = if fuel { Metering::Fuel } else { Metering::Wall };
            let address_space =
                if limited_address_space { AddressSpace::Limited } else { AddressSpace::Ample };
            let orders = CompileArgs { memory, cpu, parent, metering, address_space };
            return pointsman_policy::compile_main(orders, std::io::stdin(), std::io::stdout());
        }
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            output::print_error(output::with_causes(&error));
            let bad_config = error.is::<pointsman_config::ConfigError>()
                || error.is::<check::InvalidPolicies>()
                || error.is::<listeners::InvalidTls>()
                || error.is::<pick::NotPicker>()
                || error.is::<reload_command::RejectedConfig>()
                || error.is::<policy::PolicyLoadError>()
                || error.is::<pointsman_simulate::ExperimentError>()
                || error.is::<replay::ReplayFailure>();
            if bad_config { ExitCode::from(BAD_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}
