//! `recoup admin …`

use clap::{Args, Subcommand};
use recoup_proto::v1::{Formats, NodeFormats};

use super::context::Connection;
use super::exit::{EXIT_CODES, Exit, Failed};
use super::text::{Style, table};

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct AdminArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Subcommand)]
enum AdminCommand {
    /// Show the formats that the store may hold, and the formats that the running servers read
    Formats,
    /// Allow the newest formats that every running server reads, once all servers are up to date
    Finalize,
}

pub async fn run(arguments: AdminArguments) -> Result<Exit, Failed> {
    let context = arguments.connection.open().await?;
    match arguments.command {
        AdminCommand::Formats => {
            let found = context.client.formats().await?;
            context.say(&found, |style| {
                lines(found.writable.as_ref(), found.readable.as_ref(), &found.nodes, style)
            })?;
        }
        AdminCommand::Finalize => {
            let found = context.client.finalize_formats().await?;
            context.say(&found, |style| {
                lines(found.writable.as_ref(), found.readable.as_ref(), &found.nodes, style)
            })?;
        }
    }
    Ok(Exit::Done)
}

/// The name and the format of each kind of row.
fn kinds(formats: &Formats) -> [(&'static str, u32); 5] {
    let Formats { history, definition, failure_event, subscription, registry_answer } = *formats;
    [
        ("history", history),
        ("definition", definition),
        ("failure event", failure_event),
        ("subscription", subscription),
        ("registry answer", registry_answer),
    ]
}

fn lines(
    writable: Option<&Formats>,
    readable: Option<&Formats>,
    nodes: &[NodeFormats],
    style: Style,
) -> Vec<String> {
    let none = Formats::default();
    let (writable, readable) = (kinds(writable.unwrap_or(&none)), kinds(readable.unwrap_or(&none)));
    let each = writable.into_iter().zip(readable);
    let rows = each
        .clone()
        .map(|((kind, may), (_, read))| vec![kind.to_owned(), may.to_string(), read.to_string()]);
    let head = ["ROWS", "STORE MAY HOLD", "ALL SERVERS READ"];
    let mut lines = table(&head, &rows.collect::<Vec<_>>(), style);

    // The newest formats that any server reads, and the servers that do not read them.
    let mut newest = readable;
    for node in nodes.iter().filter_map(|node| node.readable.as_ref()) {
        for (most, (_, format)) in newest.iter_mut().zip(kinds(node)) {
            most.1 = most.1.max(format);
        }
    }
    for node in nodes {
        let read = kinds(node.readable.as_ref().unwrap_or(&none));
        let behind = read.into_iter().zip(newest).filter(|((_, read), (_, most))| read < most);
        let behind: Vec<_> = behind.map(|((kind, read), _)| format!("{kind} {read}")).collect();
        if !behind.is_empty() {
            let (address, behind) = (&node.address, behind.join(", "));
            lines.push(format!("The server at {address} is older: it reads up to {behind}."));
        }
    }
    if each.into_iter().any(|((_, may), (_, read))| may < read) {
        let advice =
            "`recoup admin finalize` allows what all servers read. That rules out rolling back.";
        lines.push(advice.to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(address: &str, history: u32) -> NodeFormats {
        let readable = Formats { history, ..all(1) };
        NodeFormats { node_id: 1, address: address.to_owned(), readable: Some(readable) }
    }

    fn all(format: u32) -> Formats {
        Formats {
            history: format,
            definition: format,
            failure_event: format,
            subscription: format,
            registry_answer: format,
        }
    }

    fn told(writable: &Formats, readable: &Formats, nodes: &[NodeFormats]) -> Vec<String> {
        lines(Some(writable), Some(readable), nodes, Style::detect(false)).split_off(6)
    }

    #[test]
    fn formats_output_names_older_servers_or_the_next_step() {
        let both = [node("new:7430", 2), node("old:7430", 1)];
        let older = "The server at old:7430 is older: it reads up to history 1.";
        assert_eq!(told(&all(1), &all(1), &both), [older]);

        let second = Formats { history: 2, ..all(1) };
        let left = told(&all(1), &second, &both[..1]);
        assert!(left[0].starts_with("`recoup admin finalize` allows"), "{left:?}");
        assert_eq!(told(&second, &second, &both[..1]), [""; 0], "it is finalized");
    }
}
