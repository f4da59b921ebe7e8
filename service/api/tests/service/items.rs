//! Steps that run for each item of a list, as clients see them.

use recoup_proto::v1::history_entry::Event;
use recoup_proto::v1::payload::Content;
use recoup_proto::v1::{self, BlockState, ItemState};

use crate::server::{Server, json, permanent, spec};

async fn begin(server: &Server, workflow: &str, input: &str) -> String {
    let execution = Some(v1::ExecutionSpec { input: Some(json(input)), ..spec(workflow) });
    let request = v1::StartExecutionRequest { execution, ..v1::StartExecutionRequest::default() };
    let response = server.executions().start_execution(request).await.expect("it starts");
    response.into_inner().execution_id
}

fn counts(info: &v1::LoopInfo) -> [u32; 5] {
    let v1::LoopInfo { item_count, begun_count, running_count, .. } = *info;
    [item_count, begun_count, running_count, info.completed_count, info.failed_count]
}

const LINES: &str = "
name: lines
cancel_grace: 0s
steps:
- id: lines
  for_each:
    items: input.lines
    item_key: item.sku
    mode: MODE
    concurrency: 2
    steps: [{id: pack, task: {type: t, input: '${item}'}}]
    output: {sku: '${key}', n: '${steps.pack.output}'}
  catch:
  - error_types: [recoup.too_many_failures]
    when: error.cause.type == 'stock.out'
    output: ['${error.message}', '${error.step}']
on_failure:
- id: report
  task: {type: t, input: '${steps.lines.output}'}
";

#[tokio::test]
async fn items_are_shown_with_their_keys_states_and_errors() {
    let server = Server::start().await;
    server.register(&LINES.replace("MODE", "WAIT_ALL")).await;
    let input = r#"{"lines": [{"sku": "a/1"}, {"sku": 7}, {"sku": "]["}]}"#;
    let id = begin(&server, "lines", input).await;
    let (first, second) = (server.poll().await, server.poll().await);
    let keys = [&first, &second].map(|task| task.idempotency_key.clone());
    assert_eq!(keys, ["a%2F1", "7"].map(|key| format!("{id}/lines[{key}].pack/0")));
    let show = async || server.get(&id).await.loops.pop().expect("the step has begun");
    let info = show().await;
    assert_eq!((info.step_path.as_str(), info.state()), ("lines", BlockState::Running));
    assert_eq!(counts(&info), [3, 2, 2, 0, 0]);

    server.fail(&second, permanent("stock.out")).await.expect("it is open");
    server.complete(&first, "1").await.expect("it is open");
    let third = server.poll().await;
    assert_eq!(third.step_path, "lines[%5D%5B].pack");
    let info = show().await;
    assert_eq!((counts(&info), info.omitted_count), ([3, 3, 1, 1, 1], 0));
    let items = info.items.iter().map(|item| (item.item.as_str(), item.index, item.state()));
    let expected = [
        ("a/1", 0, ItemState::Completed),
        ("7", 1, ItemState::Failed),
        ("][", 2, ItemState::Running),
    ];
    assert_eq!(items.collect::<Vec<_>>(), expected);
    assert_eq!(info.items[1].failed_step, "lines[7].pack");
    assert!(info.items[1].error.as_ref().is_some_and(|error| error.r#type == "stock.out"));
    server.complete(&third, "3").await.expect("it is open");

    let outcome = server.outcome(&id).await;
    assert_eq!(outcome.output, Some(json(r#"["1 of 3 items failed","lines"]"#)));
    let info = show().await;
    assert_eq!((info.state(), info.output), (BlockState::Caught, outcome.output));
    assert!(info.error.is_some_and(|error| error.r#type == "recoup.too_many_failures"));
    let told: Vec<_> = server
        .history(&id)
        .await
        .into_iter()
        .filter_map(|event| match event {
            Event::LoopStarted(begun) => {
                assert_eq!((begun.concurrency, begun.items_from.as_str()), (2, ""));
                Some(("started", begun.keys.join(" ")))
            }
            Event::ItemCompleted(own) => Some(("completed", own.item)),
            Event::ItemFailed(own) => Some(("failed", format!("{} {}", own.item, own.failed_step))),
            _ => None,
        })
        .collect();
    let expected = [
        ("started", "a/1 7 ]["),
        ("failed", "7 lines[7].pack"),
        ("completed", "a/1"),
        ("completed", "]["),
    ];
    assert_eq!(told, expected.map(|(what, item)| (what, item.to_owned())));
}

#[tokio::test]
async fn items_beside_the_first_that_fails_are_stopped_and_the_output_has_null_for_them() {
    let server = Server::start().await;
    server.register(&LINES.replace("MODE", "FAIL_FAST")).await;
    let id = begin(&server, "lines", r#"{"lines": [{"sku": 1}, {"sku": 2}, {"sku": 3}]}"#).await;
    let (first, second) = (server.poll().await, server.poll().await);
    server.complete(&first, "1").await.expect("it is open");
    let third = server.poll().await;
    server.fail(&third, permanent("payment.declined")).await.expect("it is open");
    let report = server.poll().await;
    assert_eq!(report.step_path, "report");
    assert_eq!(report.input, Some(json(r#"[{"n":1,"sku":"1"},null,null]"#)));
    let info = server.get(&id).await.loops.pop().expect("the step has begun");
    assert_eq!((info.state(), counts(&info)), (BlockState::Failed, [3, 3, 0, 1, 1]));
    let states: Vec<_> = info.items.iter().map(v1::ItemInfo::state).collect();
    assert_eq!(states, [ItemState::Completed, ItemState::Stopped, ItemState::Failed]);
    assert!(server.complete(&second, "2").await.is_err(), "its attempt has ended");
}

#[tokio::test]
async fn answer_about_many_items_lists_some_and_counts_the_others() {
    let server = Server::start().await;
    let many = "
name: many
steps:
- id: each
  for_each:
    items: input
    mode: WAIT_ALL
    concurrency: 1000
    steps:
    - {id: check, when: item % 3 == 0, fail: {type: stock.out}}
    - {id: pack, when: item % 3 == 1 && item > 200, task: {type: t}}
    - {id: inner, for_each: {items: '[1]', steps: [{id: one, set: 1}]}}
";
    server.register(many).await;
    let items: Vec<u32> = (0..300).collect();
    let id = begin(&server, "many", &serde_json::json!(items).to_string()).await;
    // The transition after the one with the last of the failed items begins the last tasks.
    let info = loop {
        let mut info = server.get(&id).await;
        let outer = info.loops.first().filter(|own| own.begun_count == 300);
        if outer.is_some_and(|own| own.running_count == 33) {
            break std::mem::take(&mut info);
        }
    };
    let outer = &info.loops[0];
    assert_eq!(counts(outer), [300, 300, 33, 167, 100]);
    let listed: Vec<u32> = outer.items.iter().map(|item| item.index).collect();
    let of = |state| outer.items[20..].iter().filter(|item| item.state() == state).count();
    assert_eq!(listed[..20], items[..20]);
    assert_eq!((of(ItemState::Failed), of(ItemState::Running)), (50, 20));
    assert_eq!((listed.len(), outer.omitted_count), (90, 210));
    assert!(listed.is_sorted());
    assert_eq!(info.pending_attempts.len(), 20);
    // Of the loops inside, those of items that are not listed are left out, too.
    assert_eq!(info.loops.len() - 1, listed[..20].iter().filter(|item| *item % 3 != 0).count());
}

#[tokio::test]
async fn items_that_cannot_run_fail_the_step() {
    let server = Server::start().await;
    server.register(&LINES.replace("MODE", "WAIT_ALL").replace("on_failure", "finally")).await;
    let many: Vec<_> = (0..10_001).map(|sku| serde_json::json!({ "sku": sku })).collect();
    let many = serde_json::json!({ "lines": many }).to_string();
    for (input, says) in [
        (many.as_str(), "10001 items, at most 10000 are allowed"),
        (r#"{"lines": [{"sku": "1"}, {"sku": 1}]}"#, "two items have the key `1`"),
        (r#"{"lines": [{"sku": null}]}"#, "the key of item 0"),
        (r#"{"lines": 5}"#, "neither a list nor a map"),
    ] {
        let id = begin(&server, "lines", input).await;
        let report = server.poll().await;
        assert_eq!(report.step_path, "report", "no item has begun");
        server.complete(&report, "1").await.expect("it is open");
        let error = server.outcome(&id).await.error.expect("it failed");
        assert_eq!(error.r#type, "recoup.items_invalid");
        assert!(error.message.contains(says), "{}", error.message);
        assert_eq!(server.get(&id).await.loops, []);
    }
}

#[tokio::test]
async fn output_of_items_that_does_not_fit_is_a_reference_and_can_be_read() {
    let server = Server::start().await;
    let two = "
name: two
steps:
- id: each
  for_each: {items: '[1, 2]', steps: [{id: a, task: {type: t}}]}
";
    server.register(two).await;
    let id = server.begin("two").await;
    for _ in 0..2 {
        let output = format!("\"{}\"", "x".repeat(800_000));
        server.complete(&server.poll().await, &output).await.expect("it is open");
    }
    let whole = server.outcome(&id).await.output.expect("it succeeded");
    let info = server.get(&id).await;
    let joined = info.loops[0].output.clone().expect("it completed");
    let Some(Content::Reference(reference)) = joined.content else { panic!("{joined:?}") };
    let request = v1::ReadPayloadRequest { payload_id: reference.payload_id };
    let read = server.failures().read_payload(request).await.expect("it is kept");
    assert_eq!(read.into_inner().payload, Some(whole));
}
