//! The command-line output in the documentation is what the binary prints.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use recoup_end_to_end::connect;
use recoup_end_to_end::page::blocks;
use recoup_end_to_end::server::{Folder, Server, recoup_once};
use recoup_proto::v1;
use serde_json::json;
use tonic::transport::Channel;

const DEFINITIONS: &str = include_str!("../../../docs/definitions.md");
const FAILURE_SEMANTICS: &str = include_str!("../../../docs/failure-semantics.md");
const RETRIES: &str = include_str!("../../../docs/retries.md");
const EXECUTIONS: &str = include_str!("../../../docs/executions.md");
const OPERATING: &str = include_str!("../../../docs/operating.md");
const README: &str = include_str!("../../../README.md");
const ORDER: &str = include_str!("../../../examples/order/order.yaml");

/// Invalid definitions. Together they produce every line of the section "Common mistakes"; some produce more
/// than one.
const MISTAKES: [&str; 28] = [
    "name: a\nsteps:\n  - id: pay\n    task: { type: x, start_to_close: 20 }\n",
    "name: a\nsteps:\n  - id: pay\n    type: x\n",
    "name: a\nsteps:\n  - id: Pay\n    task: { type: x }\n",
    "name: a\nsteps:\n  - id: in\n    task: { type: x }\n",
    "name: a\nsteps:\n  - id: pay\n    on_error: Ignore\n    task: { type: x }\n",
    "name: a\nsteps:\n  - id: pay\n    when: \"${input.x}\"\n    task: { type: x }\n",
    "name: a\nsteps:\n  - id: pay\n    task: { type: x, input: { a: \"${steps.ship.output.x}\" } }\n  \
     - id: ship\n    task: { type: x }\n",
    "name: a\nsteps:\n  - id: pay\n    task: { type: x, input: { b: \"${error.type}\" } }\n",
    "name: a\nsteps:\n  - id: a\n    task: { type: x }\n  - id: pay\n    \
     when: has(steps.a.output)\n    task: { type: x }\n",
    "name: a\nsteps:\n  - id: pay\n    allow_warning: false\n    task: { type: x, heartbeat: 2m }\n",
    "name: a\nsteps:\n  - id: pay\n    task: { type: x, schedule_to_close: 30s, start_to_close: 1m }\n",
    "name: a\nsteps:\n  - id: pay\n    allow_warning: true\n    task: { type: x }\n",
    "name: a\nsteps:\n  - id: pay\n    task: { type: x }\n\nfinally:\n  - id: done\n    \
     task: { type: x }\n    compensate: { task: { type: y } }\n",
    "name: a\nsteps:\n  - id: pay\n    task: { type: x }\n    \
     retry: { constant: { interval: 10m }, max_duration: 5m }\n",
    "name: a\nsteps:\n  - id: pay\n    task: { type: x }\n    retry: { max_attempts: 0 }\n",
    "name: a\nsteps:\n  - id: pay\n    task: { type: x }\n    \
     retry: { constant: { interval: 1s }, max_duration: 5m, non_retryable_error_types: [recoup.timout] }\n",
    "name: a\nsteps:\n  - id: pay\n    task: { type: x }\n    set: 1\n",
    "name: a\nsteps:\n  - id: sum\n    set: 1\n    retry: { max_attempts: 2 }\n",
    "name: a\nsteps:\n  - id: stop\n    fail: { type: recoup.cancelled }\n",
    "name: a\nsteps:\n  - id: again\n    fail: { rethrow: true }\n",
    "name: a\nsteps:\n  - id: done\n    return: {}\n  - id: pay\n    task: { type: x }\n",
    "name: a\nsteps:\n  - id: pay\n    task: { type: x }\n    catch:\n      - output: 1\n      - error_types: [b]\n        output: 2\n",
    "name: a\nsteps:\n  - id: pay\n    timeout: 5m\n    task: { type: x }\n",
    "name: a\nsteps:\n  - id: fan\n    parallel:\n      branches:\n        \
     a: { after: [c], steps: [{ id: s, set: 1 }] }\n",
    "name: a\nsteps:\n  - id: fan\n    parallel:\n      branches:\n        \
     a: { after: [b], steps: [{ id: s, set: 1 }] }\n        b: { after: [a], steps: [{ id: t, set: 1 }] }\n",
    "name: a\nsteps:\n  - id: fan\n    parallel:\n      branches:\n        \
     a: { steps: [{ id: s, set: 1 }] }\n        b: { steps: [{ id: t, set: \"${branches.a.output}\" }] }\n",
    "name: a\nsteps:\n  - id: all\n    for_each:\n      items: input.lines\n      item_key: sku\n      \
     steps: [{ id: s, set: 1 }]\n",
    "name: a\nsteps:\n  - id: one\n    set: \"${item}\"\n",
];

/// A server, and a folder for files.
struct Site {
    server: Server,
    folder: Folder,
}

impl Site {
    fn start(name: &str) -> Self {
        let folder = Folder::new(name);
        Self { server: Server::embedded(folder.path()), folder }
    }

    fn recoup(&self, arguments: &[&str]) -> Output {
        recoup_once(&[arguments, &["--address", &self.server.url()]].concat())
    }

    /// Runs `recoup workflow validate` on a text. Returns whether it is valid, and the printed lines without
    /// the name of the file.
    fn validate(&self, text: &str) -> (bool, Vec<String>) {
        let file = self.folder.path().join("file.yaml");
        std::fs::write(&file, text).expect("the folder can be written to");
        let output = self.recoup(&["workflow", "validate", name(&file)]);
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8(printed).expect("it prints text");
        let prefix = format!("{}:", name(&file));
        let lines = printed.lines().map(|line| line.strip_prefix(&prefix).unwrap_or(line));
        (output.status.success(), lines.map(str::to_owned).collect())
    }
}

fn name(path: &Path) -> &str {
    path.to_str().expect("the path is valid UTF-8")
}

/// Turns a block into a complete definition, because some blocks show only a step.
fn whole(block: &str) -> String {
    if block.starts_with("name:") {
        return block.to_owned();
    }
    if block.starts_with("steps:") {
        return format!("name: example\n{block}");
    }
    format!("name: example\nsteps:\n{block}")
}

/// The second cell of each table row below a heading, without its backticks.
fn documented_errors(page: &str, heading: &str) -> Vec<String> {
    let section = page.split(heading).nth(1).expect("the page has the heading");
    let rows = section.lines().filter(|line| line.starts_with("| `") || line.starts_with("| \""));
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | "));
    let cells = cells.map(|(_, cell)| cell.trim_matches('`').trim().to_owned());
    cells.filter(|cell| cell.contains(": error: ")).collect()
}

#[test]
fn documented_workflows_are_valid() {
    let site = Site::start("documentation-workflows");
    let shown = [blocks(DEFINITIONS, "yaml"), blocks(RETRIES, "yaml")].concat();
    assert!(shown.len() >= 2, "{shown:?}");
    for block in shown {
        let (valid, printed) = site.validate(&whole(block));
        assert!(valid, "{block}\n{printed:?}");
    }
}

#[test]
fn the_step_in_the_readme_matches_the_order_example() {
    let shown = blocks(README, "yaml").pop().expect("the readme shows a YAML block");
    let mut lines = ORDER.lines();
    for line in shown.lines().filter(|line| !line.trim().is_empty()) {
        // The page shows the lines inside a list, indented by one more column than the file.
        let line = &line[1..];
        assert!(lines.any(|real| real == line), "`{line}` does not follow in order.yaml");
    }
}

#[test]
fn documented_retry_waits_match_what_validate_prints() {
    let site = Site::start("documentation-waits");
    let example = blocks(RETRIES, "yaml").pop().expect("the page has an example");
    let documented =
        blocks(RETRIES, "text").pop().expect("the page shows the output for the example");
    let (_, printed) = site.validate(&whole(example));
    assert_eq!(printed, documented.lines().collect::<Vec<_>>());
}

#[test]
fn common_mistakes_print_the_documented_errors() {
    let site = Site::start("documentation-mistakes");
    let printed: Vec<String> = MISTAKES
        .iter()
        .flat_map(|text| {
            let (valid, printed) = site.validate(text);
            assert!(!valid, "{text}");
            printed
        })
        .collect();
    let documented = documented_errors(DEFINITIONS, "## Common mistakes");
    assert_eq!(documented.len(), MISTAKES.len());
    for line in documented {
        assert!(
            printed.contains(&line),
            "no mistake prints\n{line}\nbut they print\n{}",
            printed.join("\n")
        );
    }
}

#[test]
fn every_setting_of_a_server_is_documented_with_its_default() {
    let help = recoup_once(&["serve", "--help"]);
    let help = String::from_utf8(help.stdout).expect("help is text");
    let mut flag = "";
    let mut seen = 0;
    for line in help.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("--") {
            flag = rest.split(' ').next().expect("a flag has a name");
            seen += 1;
            assert!(OPERATING.contains(&format!("| `--{flag}")), "--{flag} is not documented");
        }
        let row = OPERATING.lines().find(|row| row.starts_with(&format!("| `--{flag}")));
        let value = |mark: &str| line.strip_prefix(mark).map(|rest| rest.trim_end_matches(']'));
        if let Some(variable) = value("[env: ") {
            let variable = variable.trim_end_matches('=');
            assert!(row.is_some_and(|row| row.contains(&format!("`{variable}`"))), "{variable}");
        }
        if let Some(default) = value("[default: ") {
            let documented = row.is_some_and(|row| row.contains(default));
            assert!(documented, "--{flag} is {default} by default, not as in\n{row:?}");
        }
    }
    assert!(seen >= 8, "{seen} flags in\n{help}");
}

#[test]
fn templates_evaluate_to_the_documented_values() {
    let site = Site::start("documentation-templates");
    let file = site.folder.path().join("template.yaml");
    for (template, value) in [
        (r#""${input.n}""#, "3"),
        (r#""n is ${input.n}, l is ${input.l}""#, r#""n is 3, l is [1,2]""#),
        (r#"{ twice: "${input.n * 2}" }"#, r#"{"twice":6}"#),
        (r#""$${input.n}""#, r#""${input.n}""#),
    ] {
        let row = format!("| `{template}` | `{value}` |");
        assert!(DEFINITIONS.contains(&row), "{row}");
        let text = format!(
            "name: template\nsteps:\n- {{id: none, when: \"false\", task: {{type: x}}}}\noutput: {template}\n"
        );
        std::fs::write(&file, text).expect("the folder can be written to");
        assert!(site.recoup(&["workflow", "register", name(&file)]).status.success(), "{template}");
        let input = r#"{"n": 3, "l": [1, 2]}"#;
        let ran = site.recoup(&["run", "template", "--input", input, "--output", "json"]);
        let answer: serde_json::Value =
            serde_json::from_slice(&ran.stdout).expect("it answers in JSON");
        assert_eq!(answer["ended"]["output"]["json"], value, "{template}: {answer}");
    }
}

/// Executes the tasks of the workflow in the section "Reading a timeline". The carrier has closed, and the billing is
/// out of order.
async fn work(channel: Channel) {
    let mut workers = connect::workers(channel);
    loop {
        let request = v1::PollTasksRequest { worker: "w1".into(), ..Default::default() };
        let polled = workers.poll_tasks(request).await.expect("it polls").into_inner();
        for task in polled.tasks {
            let failed = match task.r#type.as_str() {
                "carrier.label" => Some(("carrier.closed", "until Monday")),
                "billing.charge" => Some(("billing.away", "out of order")),
                _ => None,
            };
            let task_token = task.task_token;
            if let Some((kind, message)) = failed {
                let (r#type, message) = (kind.to_owned(), message.to_owned());
                let error = Some(v1::Error { r#type, message, ..Default::default() });
                let request = v1::FailTaskRequest { task_token, error };
                workers.fail_task(request).await.expect("the attempt is open");
            } else {
                let request = v1::CompleteTaskRequest { task_token, output: None };
                workers.complete_task(request).await.expect("the attempt is open");
            }
        }
    }
}

/// Runs the workflow in the section "Reading a timeline" to its end. Returns the id of the execution.
async fn send_a_parcel(channel: &Channel) -> String {
    let section = EXECUTIONS.split("## Reading a timeline").nth(1).expect("the page has it");
    connect::register(channel.clone(), blocks(section, "yaml")[0]).await;
    let input = json!({ "value": 20, "express": false, "country": "NO" });
    let execution = Some(v1::ExecutionSpec {
        workflow: "parcel".into(),
        input: Some(connect::json(&input)),
        ..Default::default()
    });
    let wait = Some(Duration::from_secs(60).into());
    let request = v1::RunExecutionRequest { execution, wait, ..Default::default() };
    let mut executions = connect::executions(channel.clone());
    let ran = tokio::select! {
        () = work(channel.clone()) => unreachable!("it does not end by itself"),
        ran = executions.run_execution(request) => ran.expect("it starts").into_inner(),
    };
    let ended = matches!(ran.result, Some(v1::run_execution_response::Result::Ended(_)));
    assert!(ended, "{ran:?}");
    ran.execution_id
}

/// A timeline in which everything that differs between two runs is replaced: times, ids and the widths of columns.
fn without_times(timeline: &str) -> Vec<String> {
    let replaced = |word: &str| {
        let number =
            word.trim_start_matches('+').trim_end_matches(',').trim_end_matches(['u', 'm', 's']);
        if word.trim_end_matches(',').ends_with('s') && number.parse::<f64>().is_ok() {
            "DURATION".to_owned()
        } else if word.len() == 36 && word.matches('-').count() == 4 {
            "ID".to_owned()
        } else if word.starts_with("20") && word.ends_with('Z') {
            "TIME".to_owned()
        } else {
            word.to_owned()
        }
    };
    let line = |line: &str| line.split_whitespace().map(replaced).collect::<Vec<_>>().join(" ");
    timeline.trim().lines().map(line).collect()
}

#[tokio::test]
async fn documented_timeline_is_what_show_prints() {
    let site = Site::start("documentation-timeline");
    let channel = connect::channel(&site.server.url());
    let execution = send_a_parcel(&channel).await;
    let shown = site.recoup(&["show", &execution]);
    let shown = String::from_utf8(shown.stdout).expect("it prints text");
    let section = EXECUTIONS.split("## Reading a timeline").nth(1).expect("the page has it");
    let documented = blocks(section, "text")[0];
    assert_eq!(without_times(documented), without_times(&shown), "it prints\n{shown}");
}

#[tokio::test]
async fn failure_of_a_step_that_rethrows_has_the_number_of_the_attempt_that_failed() {
    let site = Site::start("documentation-rethrow");
    let channel = connect::channel(&site.server.url());
    let execution_id = send_a_parcel(&channel).await;
    let request = v1::ListFailuresRequest { execution_id, ..Default::default() };
    let listed = connect::failures(channel).list_failures(request).await.expect("it lists");
    let events = listed.into_inner().failures.into_iter();
    let told = events.map(|event| {
        let kind = event.kind().as_str_name().trim_start_matches("FAILURE_KIND_").to_owned();
        (kind, event.step_path, event.attempt, event.max_attempts)
    });
    let of =
        |kind: &str, step: &str, attempt, max| (kind.to_owned(), step.to_owned(), attempt, max);
    let told = told.collect::<Vec<_>>();
    for expected in [
        of("ATTEMPT_FAILED", "bill", 1, 2),
        of("STEP_CAUGHT", "bill", 2, 2),
        // A later transition raises the error again.
        of("STEP_FAILED", "bill", 2, 2),
    ] {
        assert!(told.contains(&expected), "{expected:?} is not in {told:#?}");
    }
}

/// The cells of each table row of a text, without the header and the line below it.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<&str> = text.lines().collect();
    let is_row = |line: &str| line.starts_with("| ") && !line.starts_with("| ---");
    let is_header = |at: usize| lines.get(at + 1).is_some_and(|next| next.starts_with("| ---"));
    let rows = (0..lines.len()).filter(|at| is_row(lines[*at]) && !is_header(*at));
    rows.map(|at| lines[at].trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// The files in a cell such as "`a.rs`: `one`, `two`; `b.rs`: `three`", each with its tests.
fn named_tests(cell: &str) -> Vec<(&str, Vec<&str>)> {
    let files = cell.split("; ").map(|part| {
        let (file, tests) = part.split_once(": ").expect("a file, a colon, and its tests");
        (file.trim_matches('`'), tests.split(", ").map(|test| test.trim_matches('`')).collect())
    });
    files.collect()
}

/// Whether a source file has a test of this name: a function with the attribute of a test, a function of the
/// stores' conformance suite, or a test of pytest.
fn has_test(file: &str, name: &str) -> bool {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap_or_default();
    let source = read(file);
    if file.ends_with(".py") {
        return name.starts_with("test_") && source.contains(&format!("\ndef {name}("));
    }
    if file.starts_with("service/store/src/conformance/") {
        let listed = read("service/store/src/conformance.rs").contains(&format!(" {name};"));
        return listed && source.contains(&format!("\npub async fn {name}("));
    }
    let Some((before, _)) = source.split_once(&format!("fn {name}(")) else {
        return false;
    };
    // The attributes of a function are the lines directly before it.
    let above = before.rsplit_once('\n').map_or("", |(above, _)| above);
    let mut attributes =
        above.lines().rev().map(str::trim).take_while(|line| line.starts_with("#["));
    attributes.any(|line| line == "#[test]" || line.starts_with("#[tokio::test"))
}

#[test]
fn every_row_of_the_failure_semantics_names_tests_that_exist() {
    let (page, tests) = FAILURE_SEMANTICS.split_once("\n## The tests\n").expect("the last section");
    let numbers: Vec<&str> = rows(page).iter().map(|row| row[0]).collect();
    for row in rows(page) {
        assert_eq!(row.len(), 4, "{row:?}");
        assert!(row.iter().all(|cell| !cell.is_empty()), "{row:?}");
    }
    let tests: BTreeMap<&str, &str> = rows(tests).iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(tests.keys().find(|number| !numbers.contains(number)), None);
    assert!(numbers.len() >= 60, "{numbers:?}");
    for (at, number) in numbers.iter().enumerate() {
        assert!(!numbers[..at].contains(number), "{number} is there twice");
        let cell = tests.get(number).unwrap_or_else(|| panic!("{number} names no test"));
        for (file, names) in named_tests(cell) {
            for name in names {
                assert!(has_test(file, name), "{number}: {file} has no test {name}");
            }
        }
    }
}
