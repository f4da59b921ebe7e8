//! `recoup workflow …`

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use recoup_proto::source::write;
use recoup_sdk::proto::{
    DefinitionFormat, DefinitionIssue, DefinitionSource, IssueSeverity, StepRetrySchedule,
};

use super::context::{CommandContext, Connection, parse_count, say};
use super::exit::{EXIT_CODES, Exit, Failed};
use super::text::{Paint, Part, Style, duration, one_line, proto_nanos, timestamp};

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct WorkflowArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(subcommand)]
    command: WorkflowCommand,
}

#[derive(Subcommand)]
enum WorkflowCommand {
    /// Register workflows from YAML or JSON files; a definition that equals the latest version that
    /// is not retired creates no new version
    Register {
        /// Files to register; `-` is standard input.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Check a file as `register` would, without a server, and print the waits that its retry policies
    /// compute
    Validate {
        /// File to check; `-` is standard input.
        file: PathBuf,
    },
    /// List workflows by name, except those whose latest version is retired
    List {
        /// List only workflows whose name begins with this. Default: all.
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// Maximum number of entries to list. A line on standard error says if there are more.
        #[arg(long, default_value = "100", value_parser = parse_count)]
        limit: usize,
    },
    /// Show a workflow with its definition
    Show {
        /// Name of the workflow.
        name: String,
        /// Version to show. Default: the latest, even if it is retired.
        #[arg(long)]
        version: Option<u32>,
    },
    /// Retire a version, so that no further execution of it can start; running executions continue
    #[command(override_usage = "recoup workflow retire [OPTIONS] <NAME> <VERSION|--all-versions>")]
    Retire {
        /// Name of the workflow.
        name: String,
        #[command(flatten)]
        which: Retired,
    },
}

/// Either one version or all of them. Leaving out a number must not retire more than was intended.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Retired {
    /// Number of the version to retire.
    version: Option<u32>,
    /// Retire the workflow with all its versions, until another version is registered.
    #[arg(long)]
    all_versions: bool,
}

pub async fn run(arguments: WorkflowArguments) -> Result<Exit, Failed> {
    match arguments.command {
        WorkflowCommand::Register { files } => {
            // Read all files first, so that nothing is registered if one cannot be read.
            let texts = files.iter().map(|file| read(file)).collect::<Result<Vec<_>, _>>()?;
            let context = arguments.connection.open().await?;
            register(&context, files.iter().zip(texts)).await
        }
        WorkflowCommand::Validate { file } => {
            let text = read(&file)?;
            validate(&arguments.connection, text, &file)
        }
        WorkflowCommand::List { prefix, limit } => {
            let context = arguments.connection.open().await?;
            let workflows = context.up_to(context.client.workflows(prefix), limit).await?;
            context.say_all(
                &workflows,
                &["NAME", "VERSION", "REGISTERED", "DESCRIPTION"],
                |workflow| {
                    vec![
                        workflow.name.clone(),
                        workflow.latest_version.to_string(),
                        workflow.registered_at.as_ref().map(timestamp).unwrap_or_default(),
                        one_line(&workflow.description),
                    ]
                },
            )?;
            Ok(Exit::Done)
        }
        WorkflowCommand::Show { name, version } => {
            let context = arguments.connection.open().await?;
            show(&context, name, version).await
        }
        WorkflowCommand::Retire { name, which } => {
            let context = arguments.connection.open().await?;
            let retired = context.client.retire_workflow(&name, which.version).await?;
            context.say(&retired, |_| {
                let version = which.version.map(|version| format!(" v{version}"));
                vec![format!("{}{} retired", one_line(&name), version.unwrap_or_default())]
            })?;
            Ok(Exit::Done)
        }
    }
}

/// Reads the text of a file, or standard input for `-`.
pub(super) fn read(file: &Path) -> Result<String, Failed> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    text.map_err(|error| Failed::usage(format!("{} cannot be read: {error}", file.display())))
}

async fn register(
    context: &CommandContext,
    files: impl Iterator<Item = (&PathBuf, String)>,
) -> Result<Exit, Failed> {
    for (file, text) in files {
        let registered = context.client.register_workflow(text).await;
        let registered = registered.map_err(|error| Failed::from(error).in_file(file))?;
        context.say(&registered, |style| {
            let what = if registered.created { "registered" } else { "unchanged" };
            let title = format!("{} v{} {what}", registered.name, registered.version);
            let mut lines = vec![style.paint(Paint::Bold, &title)];
            let file = file.display().to_string();
            lines.extend(
                registered.warnings.iter().flat_map(|issue| issue_lines(issue, &file, style)),
            );
            lines
        })?;
    }
    Ok(Exit::Done)
}

/// Runs the server's own check in this process.
fn validate(connection: &Connection, text: String, file: &Path) -> Result<Exit, Failed> {
    let source = DefinitionSource { text, format: DefinitionFormat::Yaml.into() };
    let answer = recoup_api::definition_check::validate(source);
    say(connection.output, connection.style(), &answer, |style| {
        let file = file.display().to_string();
        let issues = answer.issues.iter().flat_map(|issue| issue_lines(issue, &file, style));
        let mut lines: Vec<_> = issues.collect();
        if answer.valid {
            lines.push(style.paint(Paint::Good, "valid"));
            lines.extend(answer.schedules.iter().flat_map(schedule_lines));
        }
        lines
    })?;
    Ok(if answer.valid { Exit::Done } else { Exit::Usage })
}

/// `order.yaml:12:7: error: steps[1].retry: …`
fn issue_lines(issue: &DefinitionIssue, file: &str, style: Style) -> Vec<String> {
    let place = match (file, issue.line) {
        ("", _) => String::new(),
        (file, 0) => format!("{file}:"),
        (file, line) => format!("{file}:{line}:{}:", issue.column),
    };
    let (severity, paint) = match issue.severity() {
        IssueSeverity::Warning => ("warning", Paint::Warn),
        IssueSeverity::Error | IssueSeverity::Unspecified => ("error", Paint::Bad),
    };
    let said = [issue.field_path.clone(), one_line(&issue.message)];
    let said = said.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(": ");
    style.flow(&[
        Part::new(Paint::Plain, place),
        Part::adjacent(paint, format!("{severity}:")),
        Part::adjacent(Paint::Plain, said),
    ])
}

fn schedule_lines(schedule: &StepRetrySchedule) -> Vec<String> {
    let waits = |delays: &[recoup_proto::Duration], truncated: bool| {
        let mut waits: Vec<_> =
            delays.iter().take(20).map(|delay| duration(proto_nanos(delay))).collect();
        if truncated || delays.len() > waits.len() {
            waits.push("…".to_owned());
        }
        if waits.is_empty() { "no retry".to_owned() } else { format!("waits {}", waits.join(", ")) }
    };
    let what = if schedule.compensation { ", compensation" } else { "" };
    let policy = waits(&schedule.delays, schedule.truncated);
    let mut lines = vec![format!("  {}{what}: {policy}", schedule.step_path)];
    let types = |index: u32| {
        let rules = schedule.policy.as_ref().map(|policy| policy.rules.as_slice());
        let rule = rules.unwrap_or_default().get(index as usize);
        rule.map_or_else(String::new, |rule| rule.error_types.join(", "))
    };
    lines.extend(schedule.rules.iter().map(|rule| {
        let waits = waits(&rule.delays, rule.truncated);
        format!("    rules[{}] ({}): {waits}", rule.rule_index, types(rule.rule_index))
    }));
    lines
}

async fn show(
    context: &CommandContext,
    name: String,
    version: Option<u32>,
) -> Result<Exit, Failed> {
    let workflow = context.client.workflow(name, version).await?;
    context.say(&workflow, |style| {
        let title = format!("{} v{}", workflow.name, workflow.version);
        let mut facts = format!("  namespace {}", workflow.namespace);
        if let Some(registered) = &workflow.registered_at {
            facts.push_str(&format!(" · registered {}", timestamp(registered)));
        }
        if let Some(retired) = &workflow.retired_at {
            facts.push_str(&format!(" · retired {}", timestamp(retired)));
        }
        let mut lines = vec![style.paint(Paint::Bold, &title), style.paint(Paint::Dim, &facts)];
        let definition = workflow.definition.as_ref().map(write).unwrap_or_default();
        lines.extend(definition.lines().map(str::to_owned));
        lines
    })?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use recoup_sdk::proto::{RetryPolicy, RetryRule, RuleRetrySchedule};

    use super::*;

    #[test]
    fn issue_is_printed_with_file_line_and_column() {
        let mut issue = DefinitionIssue {
            field_path: "steps[1].when".to_owned(),
            line: 12,
            column: 7,
            message: "no step `x`".to_owned(),
            ..DefinitionIssue::default()
        };
        let lines = issue_lines(&issue, "order.yaml", Style::PLAIN);
        assert_eq!(lines, ["order.yaml:12:7: error: steps[1].when: no step `x`"]);
        let lines = issue_lines(&issue, "order.yaml", Style::PLAIN.with_width(40));
        assert_eq!(lines, ["order.yaml:12:7: error:", "    steps[1].when: no step `x`"]);
        issue.line = 0;
        issue.set_severity(IssueSeverity::Warning);
        let lines = issue_lines(&issue, "", Style::PLAIN);
        assert_eq!(lines, ["warning: steps[1].when: no step `x`"]);
    }

    #[test]
    fn schedule_lists_the_delays_of_its_policy_and_rules() {
        let seconds = |seconds| recoup_proto::Duration { seconds, nanos: 0 };
        let rule = RetryRule { error_types: vec!["a.b".to_owned()], ..RetryRule::default() };
        let schedule = StepRetrySchedule {
            step_path: "charge".to_owned(),
            policy: Some(RetryPolicy { rules: vec![rule], ..RetryPolicy::default() }),
            delays: vec![seconds(1), seconds(2)],
            truncated: true,
            rules: vec![RuleRetrySchedule { rule_index: 0, ..RuleRetrySchedule::default() }],
            ..StepRetrySchedule::default()
        };
        let expected = ["  charge: waits 1.0s, 2.0s, …", "    rules[0] (a.b): no retry"];
        assert_eq!(schedule_lines(&schedule), expected);
    }
}
