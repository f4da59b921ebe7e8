//! Steps with branches, as clients see them.

use recoup_proto::v1::history_entry::Event;
use recoup_proto::v1::payload::Content;
use recoup_proto::v1::{self, BlockState, BranchState};

use crate::server::{Server, json, permanent};

/// The state of a step, and the states of its branches.
fn states(info: &v1::ParallelInfo) -> (BlockState, Vec<(&str, BranchState)>) {
    let branches = info.branches.iter().map(|branch| (branch.branch.as_str(), branch.state()));
    (info.state(), branches.collect())
}

/// Polls tasks until each of these steps has one, in this order.
async fn tasks<const N: usize>(server: &Server, paths: [&str; N]) -> [v1::Task; N] {
    let mut found: Vec<v1::Task> = Vec::new();
    while found.len() < N {
        found.push(server.poll().await);
    }
    paths.map(|path| {
        let of_path = |task: &&v1::Task| task.step_path == path;
        found.iter().find(of_path).unwrap_or_else(|| panic!("{found:?}")).clone()
    })
}

const FAN: &str = "
name: fan
cancel_grace: 0s
steps:
- id: fan
  timeout: 1h
  on_error: IGNORE
  parallel:
    mode: MODE
    branches:
      left: {steps: [{id: a, task: {type: t}}]}
      right: {steps: [{id: b, task: {type: t}}], output: {n: '${steps.b.output}'}}
      after_left: {after: [left], steps: [{id: c, task: {type: t}}]}
      after_right: {after: [right], steps: [{id: d, task: {type: t}}]}
";

#[tokio::test]
async fn branches_are_shown_with_their_states_and_errors() {
    use BranchState::{Completed, Failed, NotRun, Running, Stopped, Waiting};
    let server = Server::start().await;
    server.register(&FAN.replace("MODE", "WAIT_ALL")).await;
    let id = server.begin("fan").await;
    let [a, b] = tasks(&server, ["fan[left].a", "fan[right].b"]).await;
    let show = async || server.get(&id).await.parallels.pop().expect("the step has begun");
    let all = |[after_left, after_right, left, right]: [BranchState; 4]| {
        vec![
            ("after_left", after_left),
            ("after_right", after_right),
            ("left", left),
            ("right", right),
        ]
    };
    let begun = (BlockState::Running, all([Waiting, Waiting, Running, Running]));
    assert_eq!(states(&show().await), begun);

    server.fail(&a, permanent("stock.out")).await.expect("it is open");
    let info = show().await;
    let failed = (BlockState::Running, all([NotRun, Waiting, Failed, Running]));
    assert_eq!(states(&info), failed);
    assert_eq!((info.step_path.as_str(), info.error), ("fan", None));
    assert_eq!(info.branches[2].failed_step, "fan[left].a");
    assert!(info.branches[2].error.as_ref().is_some_and(|error| error.r#type == "stock.out"));

    server.complete(&b, "2").await.expect("it is open");
    let [d] = tasks(&server, ["fan[after_right].d"]).await;
    let next = (BlockState::Running, all([NotRun, Running, Failed, Completed]));
    assert_eq!(states(&show().await), next);
    server.fail(&d, permanent("payment.declined")).await.expect("it is open");
    let info = show().await;
    let ended = (BlockState::Ignored, all([NotRun, Failed, Failed, Completed]));
    assert_eq!(states(&info), ended);
    let error = info.error.expect("the step failed");
    let other = v1::SuppressedError {
        step_path: "fan[after_right].d".into(),
        r#type: "payment.declined".into(),
        message: permanent("payment.declined").message,
    };
    assert_eq!((error.r#type.as_str(), error.suppressed), ("stock.out", vec![other]));
    assert_eq!(server.outcome(&id).await.state(), v1::ExecutionState::Warning);

    server.register(&FAN.replace("MODE", "FAIL_FAST").replace("name: fan", "name: fast")).await;
    let fast = server.begin("fast").await;
    let [a, _b] = tasks(&server, ["fan[left].a", "fan[right].b"]).await;
    server.fail(&a, permanent("stock.out")).await.expect("it is open");
    server.outcome(&fast).await;
    let info = server.get(&fast).await.parallels.pop().expect("the step has begun");
    let stopped = (BlockState::Ignored, all([NotRun, NotRun, Failed, Stopped]));
    assert_eq!(states(&info), stopped);
    let stop = server.history(&fast).await.into_iter().find_map(|event| match event {
        Event::BlockStopped(stop) => Some(stop),
        _ => None,
    });
    let stop = stop.expect("the other branch was stopped");
    assert!(stop.error.is_none() && stop.grace_until.is_some());
}

#[tokio::test]
async fn history_records_when_branches_begin_and_how_they_end() {
    let server = Server::start().await;
    let text = FAN.replace("MODE", "WAIT_ALL\n    concurrency: 2");
    server.register(&text).await;
    let id = server.begin("fan").await;
    let [a, b] = tasks(&server, ["fan[left].a", "fan[right].b"]).await;
    server.complete(&a, "1").await.expect("it is open");
    let [c] = tasks(&server, ["fan[after_left].c"]).await;
    server.complete(&b, "2").await.expect("it is open");
    let [d] = tasks(&server, ["fan[after_right].d"]).await;
    for task in [c, d] {
        server.complete(&task, "3").await.expect("it is open");
    }
    let output = server.outcome(&id).await.output;
    let joined = json(r#"{"after_left":3,"after_right":3,"left":1,"right":{"n":2}}"#);
    assert_eq!(output.as_ref(), Some(&joined));
    let info = server.get(&id).await.parallels.pop().expect("the step has begun");
    assert_eq!((info.state(), info.output), (BlockState::Completed, Some(joined)));

    let step = || Some(v1::StepRef { step_path: "fan".into(), compensation: false });
    let mut events = server.history(&id).await.into_iter();
    let started = events.find_map(|event| match event {
        Event::ParallelStarted(started) => Some(started),
        _ => None,
    });
    let started = started.expect("the step began");
    assert_eq!((started.step, started.ready), (step(), vec!["left".into(), "right".into()]));
    assert!(started.concurrency == 2 && started.deadline.is_some());
    let ended: Vec<_> = events
        .filter_map(|event| match event {
            Event::BranchCompleted(branch) => {
                Some((branch.branch, branch.output, branch.output_from, branch.ready))
            }
            Event::ParallelCompleted(done) => {
                Some(("done".into(), None, done.step?.step_path, vec![]))
            }
            _ => None,
        })
        .collect();
    let from = |id: &str, step: &str, ready: &[&str]| {
        let ready: Vec<String> = ready.iter().map(|id| (*id).to_owned()).collect();
        (id.to_owned(), None, step.to_owned(), ready)
    };
    let right = json(r#"{"n":2}"#);
    let expected = [
        from("left", "fan[left].a", &["after_left"]),
        ("right".to_owned(), Some(right), String::new(), vec!["after_right".to_owned()]),
        from("after_left", "fan[after_left].c", &[]),
        from("after_right", "fan[after_right].d", &[]),
        from("done", "fan", &[]),
    ];
    assert_eq!(ended, expected);
}

#[tokio::test]
async fn output_of_branches_that_does_not_fit_is_a_reference_and_can_be_read() {
    let server = Server::start().await;
    let two = "
name: two
steps:
- id: fan
  parallel:
    branches:
      left: {steps: [{id: a, task: {type: t}}]}
      right: {steps: [{id: b, task: {type: t}}]}
OUTPUT
";
    server.register(&two.replace("OUTPUT", "")).await;
    server.register(&two.replace("OUTPUT", "output: 1").replace("name: two", "name: own")).await;
    let run = async |workflow: &str, bytes: usize| {
        let id = server.begin(workflow).await;
        for task in tasks(&server, ["fan[left].a", "fan[right].b"]).await {
            let output = format!("\"{}\"", "x".repeat(bytes));
            server.complete(&task, &output).await.expect("it is open");
        }
        id
    };
    let id = run("two", 800_000).await;
    let whole = server.outcome(&id).await.output.expect("it succeeded");
    let info = server.get(&id).await;
    assert_eq!(info.output.as_ref(), Some(&whole), "it is inline where there is room");
    let joined = info.parallels[0].output.clone().expect("it completed");
    let Some(Content::Reference(reference)) = joined.content else { panic!("{joined:?}") };
    let request = v1::ReadPayloadRequest { payload_id: reference.payload_id };
    let read = server.failures().read_payload(request).await.expect("it is kept");
    assert_eq!(read.into_inner().payload, Some(whole));

    // What is larger than a payload may be cannot be read, neither here nor by an expression.
    let id = run("own", 1_500_000).await;
    assert_eq!(server.outcome(&id).await.state(), v1::ExecutionState::Succeeded);
    let info = server.get(&id).await;
    assert_eq!(info.parallels[0].state(), BlockState::Completed);
    assert_eq!(info.parallels[0].output, None);
    let id = run("two", 1_500_000).await;
    let error = server.outcome(&id).await.error.expect("its output is too large");
    assert_eq!(error.r#type, "recoup.payload_too_large");
}
