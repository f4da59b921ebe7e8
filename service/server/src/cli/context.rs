//! What every command has: where its server is, how to answer, and a client.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use recoup_sdk::{Client, Pages};
use serde::Serialize;

use super::exit::{self, Failed};
use super::output::Output;
use super::text::{Style, table};

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
    pub address: String,

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
    pub output: Output,
}

/// The connected client of one command, and how the command prints.
pub struct CommandContext {
    pub client: Client,
    pub output: Output,
    pub style: Style,
}

/// One document for scripts, lines for people.
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

/// How many items or attempts at most; 0 would only hide what was asked for.
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

    /// Connects at once: a server that is away is told at once, not after retries.
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
    /// One document for scripts, lines for people.
    pub fn say<T: Serialize>(
        &self,
        document: &T,
        lines: impl FnOnce(Style) -> Vec<String>,
    ) -> Result<(), Failed> {
        say(self.output, self.style, document, lines)
    }

    /// At most so many items. That there are more is said on standard error.
    pub async fn up_to<T>(&self, pages: Pages<T>, limit: usize) -> Result<Vec<T>, Failed> {
        let mut items = pages.collect(limit.saturating_add(1)).await?;
        if items.len() > limit {
            items.truncate(limit);
            eprintln!("more results exist: raise --limit {limit}");
        }
        Ok(items)
    }

    /// One document per item for scripts, a table for people.
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
