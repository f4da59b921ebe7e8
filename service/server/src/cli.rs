//! The commands that talk to a server. They are thin, use the SDK, and answer people or scripts.

mod admin;
mod context;
mod execution;
mod exit;
mod failures;
mod namespace;
mod output;
mod show;
mod text;
mod timeline;
mod workflow;

use std::process::ExitCode;

use clap::Subcommand;

pub use self::context::parse_count;
pub use self::execution::parse_duration;
pub use self::exit::refuse_command_line;
pub use self::failures::event_summary;
pub use self::show::print_timeline;
pub use self::text::Style;

/// The commands of a client.
#[derive(Subcommand)]
pub enum ClientCommand {
    /// Register, validate, list, show and retire workflows
    Workflow(workflow::WorkflowArguments),
    /// Start an execution and print its id
    Start(execution::StartArguments),
    /// Start an execution and wait for its end
    Run(execution::RunArguments),
    /// Show what happened in an execution: each attempt, what was decided about it, and why
    Show(show::ShowArguments),
    /// List executions, latest start first
    List(execution::ListArguments),
    /// Cancel an execution and compensate its steps
    Cancel(execution::CancelArguments),
    /// End an execution at once: no step is undone, compensations that are due are parked
    Terminate(execution::TerminateArguments),
    /// Release a quarantined execution once its cause is fixed
    Release(execution::ReleaseArguments),
    /// Retry or skip parked compensations
    Compensation(execution::CompensationArguments),
    /// Read the failure feed, and manage its durable subscriptions
    Failures(failures::FailuresArguments),
    /// Create and list namespaces, and resume retention that is paused
    Namespace(namespace::NamespaceArguments),
    /// Show the storage formats, and allow new ones once all servers are up to date
    Admin(admin::AdminArguments),
}

/// Runs a command and reports errors on standard error.
pub async fn run(command: ClientCommand) -> ExitCode {
    let (connection, done) = match command {
        ClientCommand::Workflow(it) => (it.connection.clone(), workflow::run(it).await),
        ClientCommand::Start(it) => (it.connection.clone(), execution::start(it).await),
        ClientCommand::Run(it) => (it.connection.clone(), execution::run(it).await),
        ClientCommand::Show(it) => (it.connection.clone(), show::show(it).await),
        ClientCommand::List(it) => (it.connection.clone(), execution::list(it).await),
        ClientCommand::Cancel(it) => (it.connection.clone(), execution::cancel(it).await),
        ClientCommand::Terminate(it) => (it.connection.clone(), execution::terminate(it).await),
        ClientCommand::Release(it) => (it.connection.clone(), execution::release(it).await),
        ClientCommand::Compensation(it) => {
            (it.connection.clone(), execution::compensation(it).await)
        }
        ClientCommand::Failures(it) => (it.connection.clone(), failures::run(it).await),
        ClientCommand::Namespace(it) => (it.connection.clone(), namespace::run(it).await),
        ClientCommand::Admin(it) => (it.connection.clone(), admin::run(it).await),
    };
    match done {
        Ok(exit) => exit.into(),
        Err(failed) => {
            let failed = failed.at(&connection.address);
            failed.tell(connection.output);
            failed.exit.into()
        }
    }
}
