//! The console sessions that the pages of error reasons show happen as they are printed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use recoup_end_to_end::page::blocks;
use recoup_end_to_end::server::{Folder, Server, recoup_in};
use uuid::Uuid;

/// The commands that bring a new server into the state that a page assumes. `ID` stands for the last id that was
/// printed. After the last command, that id is the one that the page shows first.
struct Preparation {
    page: &'static str,
    commands: &'static [&'static [&'static str]],
}

const REGISTER: &[&str] = &["workflow", "register", "order.yaml"];
const START: &[&str] = &["start", "order"];

const PREPARATIONS: [Preparation; 12] = [
    Preparation { page: "ACK_TOKEN_INVALID", commands: &[&["failures", "subscribe", "alerts"]] },
    Preparation { page: "COMPENSATION_NOT_PARKED", commands: &[REGISTER, START] },
    Preparation {
        page: "EXECUTION_ENDED",
        commands: &[REGISTER, START, &["cancel", "ID", "--reason", "a test"]],
    },
    Preparation { page: "EXECUTION_KEY_TAKEN", commands: &[REGISTER] },
    Preparation { page: "EXECUTION_NOT_QUARANTINED", commands: &[REGISTER, START] },
    Preparation { page: "PAYLOAD_INVALID", commands: &[REGISTER] },
    Preparation { page: "PAYLOAD_TOO_LARGE", commands: &[REGISTER] },
    Preparation { page: "README", commands: &[REGISTER] },
    Preparation { page: "REQUEST_ID_REUSED", commands: &[REGISTER] },
    Preparation { page: "STEP_NOT_FOUND", commands: &[REGISTER, START] },
    Preparation { page: "WORKFLOW_RETIRED", commands: &[REGISTER] },
    Preparation { page: "WORKFLOW_VERSION_NOT_FOUND", commands: &[REGISTER] },
];

/// Pages whose session needs more than one server of this version.
const NEEDS_AN_OLDER_SERVER: [&str; 1] = ["FORMAT_NOT_FINALIZED"];

/// The workflow `order` of the pages. It needs no input, and it does not end because no worker takes its tasks.
const ORDER: &str = "name: order\nsteps:\n  - id: charge\n    task: { type: payment.charge }\n    \
                     compensate: { task: { type: payment.refund } }\n";

/// Files that sessions read: the page, the name of the file, and its text.
const FILES: [(&str, &str, &str); 2] = [
    (
        "DEFINITION_INVALID",
        "bad.yaml",
        "name: bad\nsteps:\n  - id: pay\n    task: { type: x, start_to_close: 20 }\n",
    ),
    (
        "EXPRESSION_INVALID",
        "bad.yaml",
        "name: bad\nsteps:\n  - id: pay\n    task: { type: x, input: \"${steps.ship.output.x}\" }\n  \
         - id: ship\n    task: { type: x }\n",
    ),
];

/// A command of a session, and the lines that the page shows below it.
#[derive(Debug)]
struct Exchange {
    command: String,
    printed: Vec<String>,
}

/// The exchanges of a page. A line of output that begins with a space continues the line before it, because pages
/// wrap long lines.
fn session(page: &str) -> Vec<Exchange> {
    let mut exchanges: Vec<Exchange> = Vec::new();
    for line in blocks(page, "console").into_iter().flat_map(str::lines) {
        if let Some(command) = line.strip_prefix("$ ") {
            exchanges.push(Exchange { command: command.to_owned(), printed: Vec::new() });
            continue;
        }
        let exchange = exchanges.last_mut().expect("a session begins with a command");
        match exchange.printed.last_mut() {
            Some(before) if line.starts_with(' ') => {
                before.push(' ');
                before.push_str(line.trim());
            }
            _ => exchange.printed.push(line.to_owned()),
        }
    }
    exchanges
}

/// A server, a folder for the files of a session, and the ids that stand for those of the page.
struct Shell {
    server: Server,
    folder: Folder,
    ids: BTreeMap<String, String>,
}

impl Shell {
    fn run(&self, arguments: &[String]) -> Vec<String> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let url = self.server.url();
        let output = recoup_in(self.folder.path(), &arguments, &[("RECOUP_ADDRESS", &url)]);
        let printed = String::from_utf8([output.stdout, output.stderr].concat());
        printed.expect("it prints text").lines().map(str::to_owned).collect()
    }

    /// Replaces the ids of the page that already stand for real ones.
    fn with_real_ids(&self, text: &str) -> String {
        self.ids.iter().fold(text.to_owned(), |text, (shown, real)| text.replace(shown, real))
    }

    /// Lets the ids in a line of the page stand for those in the line that was printed.
    fn learn(&mut self, shown: &str, printed: &str) {
        for (shown, real) in ids(shown).into_iter().zip(ids(printed)) {
            self.ids.entry(shown).or_insert(real);
        }
    }
}

/// The UUIDs in a text, in order.
fn ids(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
    words
        .filter(|word| Uuid::try_parse(word).is_ok_and(|id| id.to_string() == *word))
        .map(str::to_owned)
        .collect()
}

/// A line without its times, which differ from run to run.
fn without_times(line: &str) -> String {
    let words = line.split(' ').map(|word| match word.strip_suffix('Z') {
        Some(time) if time.len() == "2026-11-30T12:07:59.629".len() && time.contains('T') => "TIME",
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

fn pages() -> Vec<(String, String)> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors"));
    let entries = fs::read_dir(folder).expect("the folder of error pages exists");
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    let mut pages: Vec<(String, String)> = paths.map(|path| (stem(&path), read(&path))).collect();
    pages.retain(|(_, text)| text.contains("```console\n"));
    pages.sort();
    pages
}

fn stem(path: &Path) -> String {
    path.file_stem().and_then(|stem| stem.to_str()).expect("pages have names of text").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("the page can be read")
}

fn prepare(page: &str, text: &str) -> Shell {
    let folder = Folder::new(&format!("console-{}", page.to_lowercase()));
    let server = Server::embedded(folder.path());
    let large = serde_json::Value::from("x".repeat(2_200_000)).to_string();
    let own = FILES.iter().filter(|(of, ..)| *of == page).map(|(_, name, text)| (*name, *text));
    for (name, text) in own.chain([("order.yaml", ORDER), ("big.json", &large)]) {
        fs::write(folder.path().join(name), text).expect("the folder can be written to");
    }
    let mut shell = Shell { server, folder, ids: BTreeMap::new() };
    let prepared = PREPARATIONS.iter().find(|preparation| preparation.page == page);
    let mut id = String::new();
    for command in prepared.map_or(&[][..], |preparation| preparation.commands) {
        let arguments: Vec<String> = command.iter().map(|word| word.replace("ID", &id)).collect();
        let printed = shell.run(&arguments).join("\n");
        id = ids(&printed).pop().unwrap_or(id);
    }
    if !id.is_empty() {
        let shown = ids(text).into_iter().next().expect("a page about an execution shows its id");
        shell.ids.insert(shown, id);
    }
    shell
}

#[test]
fn console_sessions_of_error_pages_print_what_the_pages_show() {
    let mut compared = 0;
    for (page, text) in pages() {
        if NEEDS_AN_OLDER_SERVER.contains(&page.as_str()) {
            continue;
        }
        let mut shell = prepare(&page, &text);
        // Commands below which the page shows nothing are advice for the reader's own data.
        for exchange in session(&text).iter().filter(|exchange| !exchange.printed.is_empty()) {
            let command = shell.with_real_ids(&exchange.command);
            let words = shlex::split(&command).expect("the quotes of a command are closed");
            let printed = shell.run(&words[1..]);
            assert_eq!(
                printed.len(),
                exchange.printed.len(),
                "{page}: {command}\n{}",
                printed.join("\n")
            );
            for (shown, printed) in exchange.printed.iter().zip(&printed) {
                shell.learn(shown, printed);
                let shown = shell.with_real_ids(shown);
                assert_eq!(without_times(printed), without_times(&shown), "{page}: {command}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 20, "only {compared} lines were compared");
}
