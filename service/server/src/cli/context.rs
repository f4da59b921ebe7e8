//! What every command needs: the address of its server, a client, and the form of its output.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use recoup_sdk::{Client, Pages};
use serde::Serialize;

use super::exit::{self, Failed};
use super::output::Output;
use super::text::{Style, table};

/// The heading of the options that all commands share. They are listed after the command's own.
const CONNECTION: &str = "Connection and output";

/// The server to connect to, and the form of the output.
#[derive(Args, Clone)]
pub struct Connection {
    /// Server to connect to, as HOST:PORT or as a URL.
    #[arg(
        long,
        global = true,
        env = "RECOUP_ADDRESS",
        default_value = "http://127.0.0.1:7430",
        value_name = "ADDRESS",
        help_heading = CONNECTION
    )]
    pub address: String,

    /// Namespace that the command works in.
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
    pub output: Output,
}

/// The connected client of a command, and the way in which the command prints.
pub struct CommandContext {
    pub client: Client,
    pub output: Output,
    pub style: Style,
}

/// Prints one document for scripts, or lines for people.
pub fn say<T: Serialize>(
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

/// Parses a number of items or attempts. 0 is refused, because it would only hide what was asked for.
pub fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}

impl Connection {
    pub fn style(&self) -> Style {
        Style::detect(std::io::stdout().is_terminal())
    }

    /// Connects at once, so that a server that cannot be reached is reported immediately and not after
    /// retries.
    pub async fn open(&self) -> Result<CommandContext, Failed> {
        let client = Client::builder(&self.address)
            .namespace(&self.namespace)
            .retry_timeout(Duration::from_secs(5))
            .connect()
            .await?;
        Ok(CommandContext { client, output: self.output, style: self.style() })
    }
}

impl CommandContext {
    /// Prints one document for scripts, or lines for people.
    pub fn say<T: Serialize>(
        &self,
        document: &T,
        lines: impl FnOnce(Style) -> Vec<String>,
    ) -> Result<(), Failed> {
        say(self.output, self.style, document, lines)
    }

    /// Reads at most `limit` items. If there are more, a line on standard error says so.
    pub async fn up_to<T>(&self, pages: Pages<T>, limit: usize) -> Result<Vec<T>, Failed> {
        let mut items = pages.collect(limit.saturating_add(1)).await?;
        if items.len() > limit {
            items.truncate(limit);
            eprintln!("more results exist: raise --limit {limit}");
        }
        Ok(items)
    }

    /// Prints one document per item for scripts, or a table for people.
    pub fn say_all<T: Serialize>(
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
