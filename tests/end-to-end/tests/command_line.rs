//! The command line against the binary as it is shipped. Each problem is reported in one line with its field
//! and reason, and with the exit code that the help promises.

use std::process::Output;
use std::time::Duration;

use recoup_end_to_end::server::{Folder, Server, free_port, recoup, recoup_once, recoup_with};
use recoup_sdk::{Client, TaskContext, TaskError, Worker};
use serde_json::Value;

/// How long the tests wait before they fail.
const PATIENCE: Duration = Duration::from_secs(30);
const NO_ID: &str = "0199aaaa-0000-7000-8000-000000000000";
const WORKFLOW: &str = "
name: two
defaults: {retry: {max_attempts: 1}}
steps:
- {id: first, task: {type: work}, compensate: {task: {type: undo}}}
- {id: second, task: {type: '${input.type}'}}
";

struct Site {
    server: Server,
    folder: Folder,
}

impl Site {
    fn start(name: &str) -> Self {
        let folder = Folder::new(name);
        let server = Server::embedded(folder.path());
        Self { server, folder }
    }

    /// Runs a command against the server.
    fn run(&self, arguments: &[&str]) -> Output {
        let address = self.server.url();
        recoup_once(&[arguments, &["--address", &address]].concat())
    }

    /// Runs a command that must succeed without complaint. Returns its output.
    #[track_caller]
    fn answer(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(stderr(&output), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn document(&self, arguments: &[&str]) -> Value {
        let answer = self.answer(&[arguments, &["--output", "json"]].concat());
        assert_eq!(answer.lines().count(), 1, "{answer}");
        serde_json::from_str(&answer).expect("a document")
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("the folder can be written to");
        path.display().to_string()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// The error in the output of a command that answers in JSON.
#[track_caller]
fn error(output: &Output) -> Value {
    assert_eq!(output.stdout, b"", "an error must leave stdout empty");
    let stderr = stderr(output);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let mut document: Value = serde_json::from_str(&stderr).expect("a document");
    document["error"].take()
}

#[test]
fn errors_print_one_line_with_their_code() {
    let site = Site::start("cli-wrong");
    let definition = site.file("two.yaml", WORKFLOW);
    assert_eq!(site.answer(&["workflow", "register", &definition]), "two v1 registered\n");
    let id = site.answer(&["start", "two", "--key", "taken", "--input", "{\"type\": \"x\"}"]);
    let id = id.trim();
    let broken = site.file("broken.yaml", "name: two\nsteps:\n- id: a\n  tsak: {}\n");
    let binary = site.folder.path().join("binary.yaml");
    std::fs::write(&binary, [0xff, 0xfe, 0]).expect("the folder can be written to");
    let binary = binary.display().to_string();
    let large = site.file("large.json", &format!("\"{}\"", "x".repeat(3 << 20)));
    let huge = site.file("huge.yaml", &format!("name: two\n#{}", "x".repeat(6 << 20)));
    let payload = format!("@{large}");

    // Arguments, exit code, reason, and a part of the line that is printed.
    let cases: Vec<(Vec<&str>, i32, &str, &str)> = vec![
        // A malformed id is an error of the input in every command.
        (vec!["show", "nope"], 2, "FIELD_INVALID", "execution_id: must be a UUID such as"),
        (vec!["show", ""], 2, "FIELD_INVALID", "execution_id: it is required"),
        (vec!["cancel", "nope"], 2, "FIELD_INVALID", "execution_id: must be a UUID such as"),
        (vec!["terminate", "nope", "--reason", "x"], 2, "FIELD_INVALID", "execution_id: must"),
        (vec!["terminate", id, "--reason", ""], 2, "FIELD_INVALID", "reason: it is required"),
        (vec!["compensation", "retry", "nope"], 2, "FIELD_INVALID", "execution_id: must"),
        (
            vec!["compensation", "skip", "nope", "a", "--reason", "x"],
            2,
            "FIELD_INVALID",
            "_id: must",
        ),
        (vec!["failures", "list", "--execution", "nope"], 2, "FIELD_INVALID", "execution_id: must"),
        (vec!["failures", "show", ""], 2, "FIELD_INVALID", "id: it is required"),
        (vec!["failures", "tail", "--after", "nope"], 2, "CURSOR_INVALID", "cursor: "),
        (vec!["failures", "subscribe", "A b"], 2, "FIELD_INVALID", "subscription.name: "),
        (vec!["namespace", "create", "A b"], 2, "FIELD_INVALID", "namespace.name: "),
        (vec!["namespace", "create", "a", "--retention", "0s"], 2, "FIELD_INVALID", ", not 0s"),
        (vec!["namespace", "list", "A b"], 2, "FIELD_INVALID", "pattern: "),
        (vec!["list", "--namespace", "A b"], 2, "FIELD_INVALID", "namespace: "),
        (vec!["start", ""], 2, "FIELD_INVALID", "execution.workflow: it is required"),
        (vec!["start", "two", "--timeout", "0s"], 2, "FIELD_INVALID", "execution.timeout: "),
        (vec!["start", "two", "--input", "{"], 2, "PAYLOAD_INVALID", "the input is not JSON: "),
        (vec!["start", "two", "--input", "@/nonexistent"], 2, "", "/nonexistent cannot be read"),
        (vec!["start", "two", "--input", &payload], 2, "PAYLOAD_TOO_LARGE", "the limit is 2097152"),
        (vec!["workflow", "register", "/nonexistent"], 2, "", "/nonexistent cannot be read"),
        (vec!["workflow", "validate", &binary], 2, "", "binary.yaml cannot be read"),
        (vec!["workflow", "register", &broken], 2, "DEFINITION_INVALID", "steps[0].tsak: "),
        (vec!["workflow", "register", &large], 2, "DEFINITION_TOO_LARGE", "over 1 MiB"),
        (vec!["workflow", "register", &huge], 2, "", "the limit is 4194304"),
        // The name or id is well-formed, but nothing has it.
        (vec!["show", NO_ID], 3, "EXECUTION_NOT_FOUND", NO_ID),
        (vec!["cancel", NO_ID], 3, "EXECUTION_NOT_FOUND", "no such execution"),
        (vec!["terminate", NO_ID, "--reason", "x"], 3, "EXECUTION_NOT_FOUND", "no such execution"),
        (vec!["compensation", "retry", NO_ID], 3, "EXECUTION_NOT_FOUND", "no such execution"),
        (vec!["compensation", "retry", id, "--step", "x"], 3, "STEP_NOT_FOUND", "no step `x`"),
        (vec!["failures", "show", "nope"], 3, "FAILURE_NOT_FOUND", "with that id"),
        (vec!["failures", "tail", "--subscription", "no"], 3, "SUBSCRIPTION_NOT_FOUND", "`no`"),
        (vec!["failures", "unsubscribe", "no"], 3, "SUBSCRIPTION_NOT_FOUND", "`no`"),
        (vec!["failures", "ack", "no", "token"], 3, "SUBSCRIPTION_NOT_FOUND", "`no`"),
        (vec!["start", "nosuch"], 3, "WORKFLOW_NOT_FOUND", "`nosuch`"),
        (vec!["run", "two", "--version", "9"], 3, "WORKFLOW_VERSION_NOT_FOUND", "no version 9"),
        (vec!["workflow", "show", "nosuch"], 3, "WORKFLOW_NOT_FOUND", "`nosuch`"),
        (vec!["list", "--namespace", "nosuch"], 3, "NAMESPACE_NOT_FOUND", "`nosuch`"),
        (vec!["start", "two", "--namespace", "nosuch"], 3, "NAMESPACE_NOT_FOUND", "`nosuch`"),
        (vec!["failures", "tail", "--namespace", "nosuch"], 3, "NAMESPACE_NOT_FOUND", "`nosuch`"),
        // Refused because of the state that the object is in.
        (vec!["start", "two", "--key", "taken"], 1, "EXECUTION_KEY_TAKEN", "which is RUNNING"),
        (vec!["compensation", "retry", id], 1, "COMPENSATION_NOT_PARKED", "parked"),
        (vec!["namespace", "create", "default"], 1, "NAMESPACE_EXISTS", "`default`"),
    ];
    for (arguments, code, reason, says) in cases {
        let output = site.run(&arguments);
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(says), "{arguments:?}: {stderr}");
        let ending = if reason.is_empty() { "\n".to_owned() } else { format!(" ({reason})\n") };
        assert!(stderr.ends_with(&ending), "{arguments:?}: {stderr}");

        let output = site.run(&[&arguments[..], &["-o", "json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let error = error(&output);
        assert_eq!(error["reason"], reason, "{arguments:?}: {error}");
        let field = stderr.trim_start_matches("error: ").split_once(": ").map(|(field, _)| field);
        let violations = error["fieldViolations"].as_array().expect("a list");
        if code == 2 && reason == "FIELD_INVALID" {
            assert_eq!(violations[0]["field"].as_str(), field, "{arguments:?}: {error}");
        }
    }

    // Problems in a file are reported with its name, line and column.
    let output = site.run(&["workflow", "register", &broken]);
    let place = format!("error: {broken}:4:3: steps[0].tsak: ");
    assert!(stderr(&output).starts_with(&place), "{}", stderr(&output));
    let output = site.run(&["workflow", "validate", &broken]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(said.starts_with(&format!("{broken}:4:3: error: steps[0].tsak: ")), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn ended_and_still_running_executions_are_reported_with_their_state() {
    let site = Site::start("cli-ended");
    let definition = site.file("two.yaml", WORKFLOW);
    assert_eq!(site.answer(&["workflow", "register", &definition]), "two v1 registered\n");
    let id = site.answer(&["start", "two"]);
    // No worker has started a task, so an operator has nothing to undo.
    assert_eq!(site.answer(&["terminate", id.trim(), "--reason", "x"]), "TERMINATED\n");
    let output = site.run(&["cancel", id.trim()]);
    assert_eq!(output.status.code(), Some(1));
    let wanted = "error: the execution has ended as TERMINATED (EXECUTION_ENDED)\n";
    assert_eq!(stderr(&output), wanted);

    // An execution that has not ended is reported with its id, so that the caller can ask for it again.
    let run = ["run", "two", "--wait", "10ms"];
    let output = site.run(&run);
    assert_eq!(output.status.code(), Some(5));
    assert!(stderr(&output).ends_with(" is still RUNNING\n"), "{}", stderr(&output));
    let output = site.run(&[&run[..], &["-o", "json"]].concat());
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(5), ""));
    let still: Value = serde_json::from_slice(&output.stdout).expect("a document");
    assert_eq!(still["stillRunning"]["state"], "EXECUTION_STATE_RUNNING");
    let id = still["executionId"].as_str().expect("an id");
    assert_eq!(site.document(&["show", id])["execution"]["state"], "EXECUTION_STATE_RUNNING");

    // The same instant, long before the start, written with two UTC offsets. The execution started after it,
    // not before.
    let after = ["list", "--started-after", "2020-01-01T01:00:00+01:00"];
    assert!(site.answer(&after).contains(id));
    let before = ["list", "--started-before", "2020-01-01T00:00:00Z"];
    assert_eq!(site.answer(&before).lines().count(), 1);
}

#[test]
fn an_unreachable_server_exits_with_6_and_invalid_arguments_with_2() {
    let away = format!("http://127.0.0.1:{}", free_port());
    for command in [
        &["list"][..],
        &["start", "x"],
        &["show", NO_ID],
        &["workflow", "list"],
        &["failures", "tail"],
        &["namespace", "list"],
    ] {
        let arguments = [command, &["--address", &away]].concat();
        let output = recoup_once(&arguments);
        assert_eq!(output.status.code(), Some(6), "{arguments:?}");
        let stderr = stderr(&output);
        let [problem, hint] = stderr.lines().collect::<Vec<_>>()[..] else { panic!("{stderr}") };
        assert!(problem.starts_with(&format!("error: no server answers at {away}: ")), "{stderr}");
        assert!(hint.contains("`recoup dev`") && hint.contains("--address"), "{stderr}");
        let output = recoup_once(&[&arguments[..], &["-o", "json"]].concat());
        assert_eq!(output.status.code(), Some(6), "{arguments:?}");
        let message = error(&output)["message"].as_str().expect("a text").to_owned();
        assert!(message.contains(&away) && !message.contains("recoup dev"), "{message}");
    }
    for (arguments, says) in [
        (&["list", "--nosuch"][..], "--nosuch"),
        (&["list", "--state", "nosuch"], "nosuch"),
        (&["list", "--limit", "many"], "many"),
        (&["list", "--limit", "0"], "it must be at least 1"),
        (&["workflow", "list", "--limit", "0"], "it must be at least 1"),
        (&["namespace", "list", "--limit", "0"], "it must be at least 1"),
        (&["failures", "list", "--limit", "0"], "it must be at least 1"),
        (&["failures", "tail", "--limit", "0"], "it must be at least 1"),
        (&["failures", "subscriptions", "--limit", "0"], "it must be at least 1"),
        (&["workflow", "retire", "two"], "required"),
        (&["workflow", "retire", "two", "1", "--all-versions"], "cannot be used with"),
        (&["run", "x", "--wait", "5"], "`5` is not a duration"),
        (&["failures", "list", "--kind", "nosuch"], "nosuch"),
        (&["failures", "list", "--error-type", "a b"], "`a b` is not a valid pattern"),
        (&["failures", "tail", "--error-type", "a.b,"], "`` is not a valid pattern"),
        (&["list", "--error-type", "a*"], "`a*` is not a valid pattern"),
        (&["list", "--started-after", "yesterday"], "`yesterday` is not a time"),
        (&["terminate", NO_ID], "required"),
        (&["nosuch"], "nosuch"),
        (&["list", "--address", "https://127.0.0.1:7430"], "its scheme must be http"),
        (&["list", "--address", "127.0.0.1"], "it has no port"),
    ] {
        let output = recoup_once(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).starts_with("error: "), "{}", stderr(&output));
        let output = recoup_once(&[arguments, &["--output", "json"]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = error(&output);
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains(says) && !message.starts_with("error"), "{error}");
    }
    let output = recoup_once(&["failures", "list", "--kind", "nosuch"]);
    assert!(stderr(&output).contains("compensation_parked"), "{}", stderr(&output));
    let output = recoup_once(&["failures", "list", "--help"]);
    let help = String::from_utf8(output.stdout).expect("text");
    assert!(help.contains("compensation_parked"), "{help}");
    // Help is printed as an answer, and the command's own options come first.
    let output = recoup_once(&["start", "--help"]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let help = String::from_utf8(output.stdout).expect("text");
    let (own, every) =
        help.split_once("\nConnection and output:").expect("the help has both sections");
    assert!(own.contains("--input") && own.contains("<WORKFLOW>"), "{own}");
    assert!(every.contains("--address") && !every.contains("--input"), "{every}");
}

#[test]
fn the_usage_line_lists_only_required_arguments() {
    let usage = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = recoup_with(arguments, variables);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let stderr = stderr(&output);
        stderr.lines().find(|line| line.starts_with("Usage: ")).unwrap_or(&stderr).to_owned()
    };
    let terminate = "Usage: recoup terminate [OPTIONS] --reason <REASON> <EXECUTION_ID>";
    assert_eq!(usage(&["terminate"], &[]), terminate);
    let settings = [("RECOUP_ADDRESS", "http://127.0.0.1:1"), ("RECOUP_NAMESPACE", "a")];
    assert_eq!(usage(&["terminate"], &settings), terminate);
    assert_eq!(usage(&["--log", "list", "terminate", "-o", "text"], &settings), terminate);
    let retire = "Usage: recoup workflow retire [OPTIONS] <NAME> <VERSION|--all-versions>";
    assert_eq!(usage(&["workflow", "retire"], &settings), retire);
    let serve = [("RECOUP_DATA_DIR", "x"), ("RECOUP_LISTEN", "127.0.0.1:0")];
    assert_eq!(usage(&["serve", "--nosuch"], &serve), "Usage: recoup serve [OPTIONS]");
}

#[test]
fn an_address_needs_no_scheme() {
    let site = Site::start("cli-address");
    let address = site.server.address().to_string();
    for address in [address.clone(), format!("http://{address}")] {
        let output = recoup_once(&["list", "--address", &address]);
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{address}");
    }
    let output = recoup_once(&["list", "--address", "[::1]:1"]);
    assert_eq!(output.status.code(), Some(6));
    let wanted = "error: no server answers at [::1]:1: ";
    assert!(stderr(&output).starts_with(wanted), "{}", stderr(&output));
}

#[test]
fn workflow_validate_works_without_a_server() {
    let folder = Folder::new("cli-validate");
    let away = format!("http://127.0.0.1:{}", free_port());
    let validate = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).expect("the folder can be written to");
        let file = file.display().to_string();
        let output = recoup_once(&["workflow", "validate", &file, "--address", &away]);
        assert_eq!(stderr(&output), "");
        let said = String::from_utf8(output.stdout).expect("text");
        (output.status.code(), said.replace(&file, name))
    };
    let (code, said) = validate("two.yaml", WORKFLOW);
    let wanted = "valid\n  first: no retry\n  first, compensation: no retry\n  second: no retry\n";
    assert_eq!((code, said.as_str()), (Some(0), wanted));
    let policy = "name: two\nsteps:\n- id: a\n  task: {type: t}\n  retry: {max_attempts: 0}\n";
    let (code, said) = validate("policy.yaml", policy);
    assert_eq!(code, Some(2));
    let place = "policy.yaml:5:11: error: steps[0].retry.max_attempts: ";
    assert!(said.starts_with(place), "{said}");
    let (code, said) = validate("huge.yaml", &format!("name: two\n#{}", "x".repeat(6 << 20)));
    assert_eq!(code, Some(2));
    assert!(said.contains("error: the source is over 1 MiB"), "{said}");
}

#[test]
fn a_retired_version_cannot_be_started() {
    let site = Site::start("cli-retire");
    let one = site.file("one.yaml", "name: one\nsteps: [{id: a, task: {type: a}}]\n");
    let other = site.file("other.yaml", "name: one\nsteps: [{id: b, task: {type: b}}]\n");
    site.answer(&["workflow", "register", &one, &other]);
    assert_eq!(site.answer(&["workflow", "retire", "one", "2"]), "one v2 retired\n");
    let output = site.run(&["start", "one", "--version", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).ends_with("(WORKFLOW_RETIRED)\n"), "{}", stderr(&output));
    assert_eq!(site.document(&["start", "one"])["workflowVersion"], 1);
    assert!(site.document(&["workflow", "retire", "one", "2"])["retiredAt"].is_string());
    assert_eq!(site.answer(&["workflow", "retire", "one", "--all-versions"]), "one retired\n");
    assert_eq!(site.run(&["start", "one"]).status.code(), Some(1));
    for (arguments, says) in [
        (&["workflow", "retire", "one", "9"][..], "WORKFLOW_VERSION_NOT_FOUND"),
        (&["workflow", "retire", "nosuch", "--all-versions"], "WORKFLOW_NOT_FOUND"),
    ] {
        let output = site.run(arguments);
        assert_eq!(output.status.code(), Some(3));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
}

/// As docs/operating.md says: exit code 2 for a setting that is wrong in itself, 1 for a problem that may be
/// gone at the next start.
#[test]
fn serve_prints_why_it_cannot_start_and_exits_with_1_or_2() {
    let folder = Folder::new("cli-serve");
    let data = folder.path().join("data").display().to_string();
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("the folder can be written to");
    let file = file.display().to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("it is bound").to_string();
    /// Arguments, environment variables, exit code, and a part of the line that is printed.
    type Case<'a> = (Vec<&'a str>, Vec<(&'a str, &'a str)>, i32, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (vec!["--listen", "nowhere"], vec![], 2, "--listen"),
        (vec![], vec![("RECOUP_LISTEN", "nowhere")], 2, "--listen"),
        (vec!["--listen", "0.0.0.0:0"], vec![], 2, "--insecure-listen"),
        (vec![], vec![("RECOUP_INSECURE_LISTEN", "perhaps")], 2, "--insecure-listen"),
        (vec!["--store", "nosuch"], vec![], 2, "nosuch"),
        (vec!["--store", "postgres"], vec![], 2, "needs --database-url"),
        (vec!["--store", "postgres", "--database-url", "nosuch://"], vec![], 2, "--database-url"),
        // A database URL without `--store` means that the database is to be used, so it must be valid.
        (vec!["--database-url", "nosuch://"], vec![], 2, "--database-url"),
        (
            vec!["--store", "postgres"],
            vec![("RECOUP_DATABASE_URL", "postgres://h/x?sslmode=nosuch")],
            2,
            "sslmode",
        ),
        (vec!["--feed-streams-max", "0"], vec![], 2, "it must be at least 1"),
        (vec!["--feed-page-bytes", "0"], vec![], 2, "it must be at least 1"),
        (vec!["--log", "recoup=nosuch"], vec![], 2, "error: "),
        (vec![], vec![("RECOUP_LOG_FORMAT", "nosuch")], 2, "--log-format"),
        (vec!["--nosuch"], vec![], 2, "--nosuch"),
        // Problems that may be gone at the next start.
        (vec!["--data-dir", &data, "--listen", &taken], vec![], 1, "cannot listen on"),
        (
            vec!["--listen", "127.0.0.1:0", "--data-dir", &file],
            vec![],
            1,
            "cannot open the database in",
        ),
    ];
    for (arguments, variables, code, says) in cases {
        let output = recoup_with(&[&["serve"], &arguments[..]].concat(), &variables);
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {variables:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(says), "{arguments:?}: {stderr}");
        assert_eq!(output.stdout, b"", "{arguments:?}");
    }
}

#[test]
fn a_repeated_start_gets_the_same_answer_after_a_crash() {
    let mut site = Site::start("cli-again");
    let definition = site.file("one.yaml", "name: one\nsteps: [{id: a, task: {type: a}}]\n");
    assert_eq!(site.answer(&["workflow", "register", &definition]), "one v1 registered\n");
    let mut answers = Vec::new();
    for _ in 0..2 {
        let own = ["start", "one", "--key", "k", "--request-id", "own"];
        let plain = ["start", "one", "--request-id", "plain"];
        let given = [&own[..5], &["given", "--on-running", "use-existing"]].concat();
        answers.push([&own[..], &plain, &given].map(|start| site.document(start)));
        site.server.kill();
        site.server.restart();
    }
    let [own, plain, given] = &answers[0];
    // As everywhere in JSON, a field that is false is left out.
    assert_eq!((&own["started"], &plain["started"]), (&true.into(), &true.into()));
    assert_eq!((&given["executionId"], given.get("started")), (&own["executionId"], None));
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn a_log_in_a_file_has_no_colours() {
    let folder = Folder::new("cli-log");
    let data = folder.path().join("data").display().to_string();
    let place = ["--listen", "127.0.0.1:0", "--store", "sqlite", "--data-dir", &data];
    let arguments = [&["serve", "--log", "debug"], &place[..]].concat();
    let mut server = recoup(&arguments, &folder.path().join("server.log"));
    assert!(server.line(PATIENCE).is_some(), "{}", server.log());
    server.terminate();
    assert_eq!(server.exit(PATIENCE).and_then(|exit| exit.code()), Some(0), "{}", server.log());
    let log = server.log();
    assert!(!log.is_empty() && !log.contains('\u{1b}'), "{log:?}");
}

/// The path of a new user, from the definition of a workflow to the intervention of an operator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_take_an_execution_from_definition_to_skipped_compensation() {
    let site = Site::start("cli-way");
    let client = Client::connect(site.server.url()).await.expect("it listens");
    let worker = Worker::builder(client)
        .task("work", |_: TaskContext, (): ()| async { Ok::<_, TaskError>("done") })
        .task("bad", |_: TaskContext, (): ()| async {
            Err::<(), _>(TaskError::new("test.bad").message("one\ntwo\u{1b}[31m\u{7}three"))
        })
        .task("undo", |_: TaskContext, _: Value| async {
            Err::<(), _>(TaskError::new("test.stuck"))
        });
    tokio::spawn(worker.run(std::future::pending()));
    let definition = "
name: way
description: \"to\\tsee\"
defaults: {retry: {max_attempts: 1}}
steps:
- {id: first, task: {type: work}, compensate: {task: {type: undo}}}
- {id: second, task: {type: bad}}
";
    let file = site.file("way.yaml", definition);
    assert_eq!(site.answer(&["workflow", "validate", &file]).lines().next(), Some("valid"));
    assert_eq!(site.answer(&["workflow", "register", &file]), "way v1 registered\n");
    assert_eq!(site.answer(&["workflow", "register", &file]), "way v1 unchanged\n");
    let listed = site.answer(&["workflow", "list"]);
    assert!(listed.contains("way") && listed.ends_with("to see\n"), "{listed:?}");
    assert_eq!(site.document(&["workflow", "show", "way"])["version"], 1);
    // The definition is printed in the syntax of a file. Registering that text again gives the same version.
    let shown = site.answer(&["workflow", "show", "way"]);
    assert!(shown.starts_with("way v1\n") && shown.contains("max_attempts: 1\n"), "{shown}");
    let definition: Vec<_> = shown.lines().skip(2).collect();
    let copy = site.file("copy.yaml", &definition.join("\n"));
    assert_eq!(site.answer(&["workflow", "register", &copy]), "way v1 unchanged\n");

    site.answer(&["failures", "subscribe", "all"]);
    let output = site.run(&["run", "way", "--key", "a\u{1b}b", "-o", "json"]);
    assert_eq!(output.status.code(), Some(4));
    let ended: Value = serde_json::from_slice(&output.stdout).expect("a document");
    assert_eq!(ended["ended"]["state"], "EXECUTION_STATE_FAILED");
    assert_eq!(ended["ended"]["compensationState"], "COMPENSATION_STATE_PARKED");
    let id = ended["executionId"].as_str().expect("an id");

    let shown = site.answer(&["show", id]);
    assert!(shown.contains("test.bad: one two [31m three"), "{shown}");
    assert!(shown.contains(&format!("recoup compensation retry {id} --step first")), "{shown}");
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    assert_eq!(site.document(&["show", id])["execution"]["executionId"], id);
    for filter in [
        &["--state", "failed,running"][..],
        &["--workflow", "way"],
        &["--error-type", "test"],
        &["--key-prefix", "a"],
        &["--parked"],
    ] {
        let listed = site.answer(&[&["list"], filter].concat());
        assert!(listed.lines().count() == 2 && listed.contains(id), "{filter:?}: {listed}");
        assert!(listed.contains("FAILED (parked)"), "{listed}");
    }
    for filter in [
        &["--state", "succeeded"][..],
        &["--workflow", "wa"],
        &["--error-type", "tes"],
        &["--key-prefix", "b"],
    ] {
        let listed = site.answer(&[&["list"], filter].concat());
        assert_eq!(listed.lines().count(), 1, "{filter:?}: {listed}");
    }

    let events = site.answer(&["failures", "list", "--execution", id]);
    let parked = events.lines().find(|line| line.contains("compensation_parked"));
    assert!(parked.is_some_and(|line| line.contains("test.stuck")), "{events}");
    let kind = ["failures", "list", "--kind", "execution_failed", "--workflow", "way"];
    let event = site.document(&kind)["id"].as_str().expect("an id").to_owned();
    let listed = site.answer(&kind);
    assert!(listed.trim_end().ends_with(&event), "{listed}");
    let shown = site.answer(&["failures", "show", &event]);
    assert!(shown.contains("execution_failed") && shown.contains(id), "{shown}");
    let tailed = site.answer(&["failures", "tail", "--from-beginning", "--limit", "1"]);
    assert!(tailed.contains("step_failed"), "{tailed}");
    let event = tailed.split_whitespace().last().expect("an id");
    assert!(site.answer(&["failures", "show", event]).contains("step_failed"), "{tailed}");
    let subscriptions = site.answer(&["failures", "subscriptions"]);
    assert!(subscriptions.lines().count() == 2, "{subscriptions}");
    assert!(subscriptions.lines().any(|line| line.starts_with("all  ")), "{subscriptions}");
    let delivery = site.document(&["failures", "tail", "--subscription", "all", "--limit", "1"]);
    let token = delivery["ackToken"].as_str().expect("a token");
    assert_eq!(site.answer(&["failures", "ack", "all", token]), format!("{token} accepted\n"));
    let output = site.run(&["failures", "ack", "all", "nope"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b"nope invalid\n"[..]));

    assert_eq!(site.answer(&["failures", "unsubscribe", "all"]), "all deleted\n");
    assert_eq!(site.answer(&["failures", "subscriptions"]).lines().count(), 1);

    let reason = ["--reason", "line\u{1b}[1mone\nline two"];
    let retry = [&["compensation", "retry", id], &reason[..]].concat();
    assert_eq!(site.answer(&retry), "compensation RUNNING\n");
    let skip = ["compensation", "skip", id, "first", "--reason", "by hand"];
    let skipping = async {
        while site.run(&skip).status.code() != Some(0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, skipping).await.expect("it fails and parks again");
    let shown = site.answer(&["show", id]);
    assert!(shown.contains("compensation DONE") && shown.contains("by hand"), "{shown}");
    assert!(shown.contains("tried again: line [1mone line two"), "{shown}");

    let output = site.run(&["run", "way"]);
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(said.contains("parked, a person must act: first\n"), "{said}");
    let other = said.split_whitespace().nth(2).expect("an id");
    let retry = format!("recoup compensation retry {other} --step first\n");
    assert!(said.contains(&retry), "{said}");
    let output = site.run(&["list", "--limit", "1"]);
    assert!(stderr(&output).contains("more results exist: raise --limit 1"), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);

    let created = site.answer(&["namespace", "create", "shop.eu", "--retention", "24h"]);
    assert_eq!(created, "shop.eu\n");
    let listed = site.answer(&["namespace", "list", "shop.*"]);
    assert!(listed.lines().count() == 2 && listed.contains("1d00h"), "{listed}");
}

#[test]
fn the_demo_prints_its_story_and_stops_when_terminated() {
    let folder = Folder::new("cli-demo");
    let mut demo = recoup(&["demo", "--port", "0"], &folder.path().join("demo.log"));
    let mut story = Vec::new();
    while story.last().is_none_or(|line| line != "Ctrl-C stops it.") {
        story.push(demo.line(PATIENCE).unwrap_or_else(|| panic!("{story:#?}\n{}", demo.log())));
    }
    let prints = |text: &str| story.iter().any(|line| line.contains(text));
    for text in [
        "smooth: nothing fails",
        "payment.unavailable",
        "asked for by the error",
        "stopped: non-retryable type",
        "compensation: charge (outcome unknown), reserve",
    ] {
        assert!(prints(text), "{text}: {story:#?}");
    }
    let ends = |end: &str| story.iter().filter(|line| line.contains(end)).count();
    // Each end is printed twice: at the head and at the foot of a timeline.
    assert_eq!((ends("SUCCEEDED"), ends("FAILED")), (6, 4), "{story:#?}");
    // The command that the demo suggests works exactly as it is printed.
    let list = story.iter().find(|line| line.contains(" list --address "));
    let words: Vec<&str> = list.expect("the demo suggests a command").split_whitespace().collect();
    let listed = std::process::Command::new(words[0]).args(&words[1..]).output();
    let listed =
        String::from_utf8(listed.expect("the suggested program runs").stdout).expect("text");
    assert_eq!(listed.lines().count(), 6, "{listed}");

    demo.terminate();
    assert_eq!(demo.exit(PATIENCE).and_then(|exit| exit.code()), Some(0), "{}", demo.log());
    assert_eq!(demo.log(), "");
}
