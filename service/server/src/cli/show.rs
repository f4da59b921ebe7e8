//! `recoup show`

use clap::Args;
use recoup_sdk::Client;
use recoup_sdk::proto::{ErrorReason, ExecutionInfo, HistoryEntry};
use serde_json::json;

use super::context::Connection;
use super::exit::{self, EXIT_CODES, Exit, Failed};
use super::output::Output;
use super::text::Style;
use super::timeline;

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct ShowArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Id of the execution, as `recoup list` prints it.
    execution_id: String,
}

pub async fn show(arguments: ShowArguments) -> Result<Exit, Failed> {
    let context = arguments.connection.open().await?;
    if context.output == Output::Text {
        print_timeline(&context.client, &arguments.execution_id, context.style).await?;
        return Ok(Exit::Done);
    }
    let (execution, history) = read(&context.client, &arguments.execution_id).await?;
    let document = json!({ "execution": execution, "history": history });
    exit::print(&[document.to_string()])?;
    Ok(Exit::Done)
}

/// Prints the timeline of an execution. The demo does so too.
pub async fn print_timeline(
    client: &Client,
    execution_id: &str,
    style: Style,
) -> Result<(), Failed> {
    let (execution, history) = read(client, execution_id).await?;
    exit::print(&timeline::render(&execution, &history, style))
}

/// Reads the history first, so that the execution is at least as new as the last event.
async fn read(
    client: &Client,
    execution_id: &str,
) -> Result<(ExecutionInfo, Vec<HistoryEntry>), Failed> {
    let mut pages = client.history(execution_id);
    let mut history = Vec::new();
    loop {
        match pages.next().await {
            Ok(Some(page)) => history.extend(page),
            Ok(None) => break,
            // The entries before the unreadable one are shown; the execution says why there are no more.
            Err(error) if error.reason() == ErrorReason::ExecutionQuarantined => break,
            Err(error) => return Err(error.into()),
        }
    }
    let execution = client.execution(execution_id).await?;
    Ok((execution, history))
}
