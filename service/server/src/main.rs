//! `recoup`: the server, and the command line that speaks to it.
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `serve` | `recoup serve` and `recoup dev`: a store, an engine on it, and the API on a port |
//! | `listen` | accepting connections |
//! | `gate` | how many connections are open, in all and per peer |
//! | `connection` | one accepted connection, and how soon it must speak HTTP/2 |
//! | `waiting` | the messages of a server that waits for its database |
//! | `telemetry` | logs: their format and filter |
//! | `cli` | the commands that call a server |
//! | `demo` | `recoup demo` |
//! | `bench` | `recoup bench` |

mod bench;
mod cli;
mod connection;
mod demo;
mod gate;
mod listen;
mod serve;
mod telemetry;
mod waiting;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Durable workflows built around failure handling.
///
/// Recoup retries failed steps by the policies that you choose,
/// compensates completed steps when no retry helps,
/// and streams every failure to its subscribers.
#[derive(Parser)]
#[command(name = "recoup", version, max_term_width = 100, verbatim_doc_comment)]
struct Arguments {
    /// What to log, in the syntax of RUST_LOG.
    #[arg(
        long,
        global = true,
        env = "RECOUP_LOG",
        default_value = "warn",
        value_name = "FILTER",
        help_heading = "Logging"
    )]
    log: String,

    /// Format of the log.
    #[arg(
        long,
        global = true,
        env = "RECOUP_LOG_FORMAT",
        value_enum,
        default_value = "text",
        help_heading = "Logging"
    )]
    log_format: telemetry::LogFormat,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a server
    Serve(serve::ServeOptions),
    /// Run a server for development: embedded store, loopback only
    Dev(serve::DevOptions),
    /// Watch five orders succeed, be retried, or fail and be undone: server, workers and feed in
    /// one process
    Demo(demo::DemoOptions),
    #[command(flatten)]
    Client(cli::ClientCommand),
    /// Measure the throughput of this machine and print it as one line
    Bench(bench::BenchOptions),
    /// A process of a measurement
    #[command(hide = true, subcommand)]
    BenchRole(bench::Role),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return cli::refuse_command_line(error, Arguments::command()),
    };
    if let Err(error) = telemetry::init(arguments.log_format, &arguments.log) {
        eprintln!("error: {error:#}");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(run(arguments.command))
}

async fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Serve(options) => serve::serve(options).await,
        Command::Dev(options) => serve::serve(options.into()).await,
        Command::Client(command) => return cli::run(command).await,
        Command::Demo(options) => demo::run(options).await,
        Command::Bench(options) => bench::run(options).await,
        Command::BenchRole(role) => bench::run_role(role).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<serve::WrongSetting>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// The Markdown files of the README and of `docs/`.
    fn pages(root: &Path) -> Vec<PathBuf> {
        let mut pages = vec![root.join("README.md")];
        let mut folders = vec![root.join("docs")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("the folder can be read") {
                let path = entry.expect("the folder can be read").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "md") {
                    pages.push(path);
                }
            }
        }
        pages
    }

    /// The commands of `recoup` in the shell blocks of a page, without what the shell does with them.
    fn commands(page: &str) -> Vec<Vec<String>> {
        let blocks = page.split("```").skip(1).step_by(2);
        let shell = blocks.filter_map(|block| {
            ["sh\n", "console\n"].into_iter().find_map(|language| block.strip_prefix(language))
        });
        let joined: Vec<String> = shell.map(|block| block.replace("\\\n", " ")).collect();
        let lines = joined.iter().flat_map(|block| block.lines()).map(str::trim);
        let lines = lines.map(|line| line.strip_prefix("$ ").unwrap_or(line));
        lines
            .filter(|line| line.starts_with("recoup "))
            .map(|line| {
                let words = shlex::split(line).expect("the quotes of a command are closed");
                words
                    .into_iter()
                    .take_while(|word| word != "|" && !word.starts_with("<<"))
                    .collect()
            })
            .collect()
    }

    #[test]
    fn every_command_in_the_documentation_is_accepted() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut checked = 0;
        for page in pages(&root) {
            let text = std::fs::read_to_string(&page).expect("the page can be read");
            for command in commands(&text) {
                let help = command.contains(&"--help".to_owned());
                let parsed = Arguments::try_parse_from(&command);
                assert!(
                    help || parsed.is_ok(),
                    "{}: {command:?}: {}",
                    page.display(),
                    parsed.err().expect("it was refused")
                );
                checked += 1;
            }
        }
        assert!(checked >= 60, "only {checked} commands were found");
    }
}
