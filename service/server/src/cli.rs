//! The commands that speak to a server: thin, on the SDK, for people and for scripts.

mod execution;
mod exit;
mod failures;
mod namespace;
mod show;
mod text;
mod timeline;
mod workflow;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use recoup_sdk::{Client, Pages};
use serde::Serialize;

pub use self::execution::parse_duration;
use self::exit::Failed;
pub use self::exit::refuse_command_line;
pub use self::failures::event_line;
pub use self::show::print_timeline;
pub use self::text::Style;
use self::text::table;

/// The commands of a client.
#[derive(Subcommand)]
pub enum ClientCommand {
    /// Register, validate, list and show workflows
    Workflow(workflow::WorkflowArguments),
    /// Start an execution and print its id
    Start(execution::StartArguments),
    /// Start an execution and wait for its end
    Run(execution::RunArguments),
    /// Show what happened in an execution: a line per attempt, what was decided and why
    Show(show::ShowArguments),
    /// List executions, latest start first
    List(execution::ListArguments),
    /// Cancel an execution: it is compensated
    Cancel(execution::CancelArguments),
    /// End an execution at once: nothing is undone, what was due is parked
    Terminate(execution::TerminateArguments),
    /// Release a quarantined execution once its cause is fixed
    Release(execution::ReleaseArguments),
    /// Resolve parked compensations
    Compensation(execution::CompensationArguments),
    /// Read the failure feed
    Failures(failures::FailuresArguments),
    /// Create and list namespaces
    Namespace(namespace::NamespaceArguments),
}

/// What every command has stands behind what is its own.
const CONNECTION: &str = "Connection and output";

/// Where to, and how to answer.
#[derive(Args, Clone)]
pub struct Connection {
    /// The server, as HOST:PORT or as a URL.
    #[arg(
        long,
        global = true,
        env = "RECOUP_ADDRESS",
        default_value = "http://127.0.0.1:7430",
        value_name = "ADDRESS",
        help_heading = CONNECTION
    )]
    address: String,

    /// The namespace.
    #[arg(
        long,
        global = true,
        env = "RECOUP_NAMESPACE",
        default_value = "default",
        help_heading = CONNECTION
    )]
    namespace: String,

    /// `text` for people; `json` for scripts: proto3 JSON, one document per line.
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        default_value = "text",
        help_heading = CONNECTION
    )]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// What every command has at hand.
struct Session {
    client: Client,
    output: Output,
    style: Style,
}

/// One document for scripts, lines for people.
fn say<T: Serialize>(
    output: Output,
    style: Style,
    document: &T,
    lines: impl FnOnce(Style) -> Vec<String>,
) -> Result<(), Failed> {
    match output {
        Output::Json => exit::print(&[serde_json::to_string(document).map_err(Failed::json)?]),
        Output::Text => exit::print(&lines(style)),
    }
}

/// How many items or attempts at most; 0 would only hide what was asked for.
pub fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}

impl Connection {
    fn style(&self) -> Style {
        Style::detect(std::io::stdout().is_terminal())
    }

    /// Connects at once: a server that is away is told at once, not after retries.
    async fn open(&self) -> Result<Session, Failed> {
        let client = Client::builder(&self.address)
            .namespace(&self.namespace)
            .retry_timeout(Duration::from_secs(5))
            .connect()
            .await?;
        Ok(Session { client, output: self.output, style: self.style() })
    }
}

impl Session {
    /// One document for scripts, lines for people.
    fn say<T: Serialize>(
        &self,
        document: &T,
        lines: impl FnOnce(Style) -> Vec<String>,
    ) -> Result<(), Failed> {
        say(self.output, self.style, document, lines)
    }

    /// At most so many items. That there are more is said on standard error.
    async fn up_to<T>(&self, pages: Pages<T>, limit: usize) -> Result<Vec<T>, Failed> {
        let mut items = pages.collect(limit.saturating_add(1)).await?;
        if items.len() > limit {
            items.truncate(limit);
            eprintln!("more results exist: raise --limit {limit}");
        }
        Ok(items)
    }

    /// One document per item for scripts, a table for people.
    fn say_all<T: Serialize>(
        &self,
        items: &[T],
        head: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), Failed> {
        let lines = match self.output {
            Output::Json => {
                let documents = items.iter().map(serde_json::to_string);
                documents.collect::<Result<Vec<_>, _>>().map_err(Failed::json)?
            }
            Output::Text => table(head, &items.iter().map(row).collect::<Vec<_>>(), self.style),
        };
        exit::print(&lines)
    }
}

/// Runs a command and tells what went wrong on standard error.
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
