//! `recoup namespace …`

use std::time::Duration;

use clap::{Args, Subcommand};

use super::context::{Connection, parse_count};
use super::execution::parse_duration;
use super::exit::{EXIT_CODES, Exit, Failed};
use super::text::{duration, one_line, proto_nanos, timestamp};

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct NamespaceArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(subcommand)]
    command: NamespaceCommand,
}

#[derive(Subcommand)]
enum NamespaceCommand {
    /// Create a namespace, such as `company.team`
    Create {
        /// Name of the namespace: segments of `[a-z][a-z0-9_-]*`, separated by dots.
        name: String,
        /// Description for people, which `recoup namespace list` prints.
        #[arg(long, default_value = "", hide_default_value = true)]
        description: String,
        /// How long ended executions and failure events are kept, like 24h or 7d; at least 1m.
        /// Default: 30d.
        #[arg(long, value_parser = parse_duration)]
        retention: Option<Duration>,
    },
    /// List namespaces by name
    List {
        /// Full name of a namespace, or `company.*` for the namespaces below `company`. Default:
        /// all.
        #[arg(default_value = "", hide_default_value = true)]
        pattern: String,
        /// Maximum number of entries to list. A line on standard error says if there are more.
        #[arg(long, default_value = "100", value_parser = parse_count)]
        limit: usize,
    },
    /// Resume retention, which pauses when the database's clock was set; check that clock first
    ResumeRetention,
}

pub async fn run(arguments: NamespaceArguments) -> Result<Exit, Failed> {
    let context = arguments.connection.open().await?;
    match arguments.command {
        NamespaceCommand::Create { name, description, retention } => {
            let created = context.client.create_namespace(name, description, retention).await?;
            context.say(&created, |_| vec![created.name.clone()])?;
        }
        NamespaceCommand::List { pattern, limit } => {
            let namespaces = context.up_to(context.client.namespaces(pattern), limit).await?;
            let head = ["NAME", "RETENTION", "CREATED", "DESCRIPTION"];
            context.say_all(&namespaces, &head, |namespace| {
                let retention = namespace.retention.as_ref();
                vec![
                    namespace.name.clone(),
                    retention.map(|time| duration(proto_nanos(time))).unwrap_or_default(),
                    namespace.created_at.as_ref().map(timestamp).unwrap_or_default(),
                    one_line(&namespace.description),
                ]
            })?;
        }
        NamespaceCommand::ResumeRetention => {
            let resumed = context.client.resume_retention().await?;
            context.say(&resumed, |_| {
                vec![match &resumed.paused_at {
                    Some(at) => format!("retention runs again; it was paused at {}", timestamp(at)),
                    None => "retention was not paused".to_owned(),
                }]
            })?;
        }
    }
    Ok(Exit::Done)
}
