//! A quarantined execution: what the API reports about it, and how an operator releases it.

use std::sync::Arc;

use recoup_core::id::ExecutionId;
use recoup_proto::v1;
use recoup_store::StoredTransition;
use recoup_store::memory::MemoryStore;
use tonic::{Code, Status};

use crate::server::{Server, refusal};

const PAIR: &str = "
name: pair
steps:
- {id: a, task: {type: t}}
- {id: b, task: {type: u}}
";

struct Case {
    store: MemoryStore,
    server: Server,
    id: String,
    execution: ExecutionId,
    lost: StoredTransition,
}

/// A server that has not loaded the execution yet, and an execution whose second transition is missing.
async fn damaged() -> Case {
    let store = MemoryStore::with_system_clock();
    let first = Server::on(Arc::new(store.clone()), |_| {}).await;
    first.register(PAIR).await;
    let id = first.begin("pair").await;
    let task = first.poll().await;
    first.complete(&task, "1").await.expect("it is open");
    let execution = ExecutionId(id.parse().expect("an id"));
    let lost = store.take_transition(execution, 2).expect("it was committed");
    // A third transition follows, so that the missing one leaves a gap.
    store.put_transition(execution, StoredTransition { sequence: 3, ..lost.clone() });
    let server = Server::on(Arc::new(store.clone()), |_| {}).await;
    Case { store, server, id, execution, lost }
}

impl Case {
    async fn info(&self) -> v1::ExecutionInfo {
        let request = v1::GetExecutionRequest { execution_id: self.id.clone() };
        let response = self.server.executions().get_execution(request).await;
        response.expect("it is known").into_inner().execution.expect("always set")
    }

    async fn release(
        &self,
        reason: &str,
        request_id: &str,
    ) -> Result<v1::ReleaseExecutionResponse, Status> {
        let request = v1::ReleaseExecutionRequest {
            execution_id: self.id.clone(),
            reason: reason.into(),
            request_id: request_id.into(),
        };
        Ok(self.server.executions().release_execution(request).await?.into_inner())
    }

    async fn quarantined(&self) -> Vec<v1::ExecutionInfo> {
        let filter = v1::ExecutionFilter { quarantined: true, ..Default::default() };
        let request = v1::ListExecutionsRequest { filter: Some(filter), ..Default::default() };
        let page = self.server.executions().list_executions(request).await;
        page.expect("a page").into_inner().executions
    }

    async fn events(&self) -> Vec<v1::FailureEvent> {
        let filter = v1::FailureFilter {
            kinds: vec![v1::FailureKind::ExecutionQuarantined.into()],
            ..Default::default()
        };
        let request = v1::ListFailuresRequest { filter: Some(filter), ..Default::default() };
        let page = self.server.failures().list_failures(request).await;
        page.expect("a page").into_inner().failures
    }
}

fn assert_quarantined<T: std::fmt::Debug>(result: Result<T, Status>) {
    let (code, reason, _) = refusal(result);
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "EXECUTION_QUARANTINED"));
}

#[tokio::test]
async fn damaged_execution_is_quarantined_and_rejects_cancel_and_await() {
    let case = damaged().await;
    let info = case.info().await;
    assert!(info.quarantined);
    let quarantine = info.quarantine.as_ref().expect("it says why");
    assert_eq!(quarantine.reason(), v1::QuarantineReason::HistoryGap);
    assert_eq!(quarantine.detail, "transition 2 is missing, 3 follows");
    assert!(quarantine.quarantined_at.is_some() && quarantine.released_at.is_none());
    // The API still reports the fields that can be read.
    assert_eq!((info.workflow.as_str(), info.workflow_version), ("pair", 1));
    assert_eq!(info.state(), v1::ExecutionState::Running);
    assert!(info.input.is_some() && info.started_at.is_some());

    let (mut executions, execution_id) = (case.server.executions(), case.id.clone());
    let cancel = v1::CancelExecutionRequest { execution_id, ..Default::default() };
    assert_quarantined(executions.cancel_execution(cancel).await);
    let execution_id = case.id.clone();
    let wait = v1::AwaitExecutionRequest { execution_id, ..Default::default() };
    assert_quarantined(executions.await_execution(wait).await);

    let listed = case.quarantined().await;
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].execution_id, listed[0].quarantined), (&case.id, true));
    assert_eq!(listed[0].quarantine, info.quarantine);
    let events = case.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0].execution_id, events[0].history_sequence), (&case.id, 1));
    assert_eq!(events[0].error.as_ref().expect("it has one").r#type, "recoup.quarantined");
}

#[tokio::test]
async fn history_is_listed_up_to_the_first_unreadable_transition() {
    let case = damaged().await;
    let data = bytes::Bytes::from_static(b"\xff\xff");
    let garbled = StoredTransition { data, ..case.lost.clone() };
    case.store.put_transition(case.execution, garbled);
    let list = async |page_token: String| {
        let execution_id = case.id.clone();
        let request = v1::ListExecutionHistoryRequest { execution_id, page_size: 0, page_token };
        case.server.executions().list_execution_history(request).await
    };
    let page = list(String::new()).await.expect("the first can be read").into_inner();
    assert!(page.entries.iter().all(|entry| entry.sequence == 1) && !page.entries.is_empty());
    assert_quarantined(list(page.next_page_token).await);
}

#[tokio::test]
async fn repaired_execution_can_be_released_and_completes() {
    let case = damaged().await;
    let unread = refusal(case.release("fixed", "").await).1;
    assert_eq!(unread, "EXECUTION_NOT_QUARANTINED", "no server has loaded it yet");
    assert!(case.info().await.quarantined);
    assert_eq!(refusal(case.release("", "").await).2, ["reason"]);
    let request = v1::ReleaseExecutionRequest {
        execution_id: uuid::Uuid::nil().to_string(),
        reason: "fixed".into(),
        request_id: String::new(),
    };
    let unknown = case.server.executions().release_execution(request).await;
    assert_eq!(refusal(unknown).1, "EXECUTION_NOT_FOUND");
    // The cause was not fixed, so the execution is quarantined and reported again.
    assert_quarantined(case.release("probably fixed", "first").await);
    assert_eq!(case.events().await.len(), 2);

    case.store.take_transition(case.execution, 3).expect("the test put it there");
    case.store.put_transition(case.execution, case.lost.clone());
    for _ in 0..2 {
        let released =
            case.release("put it back", "r").await.expect("its history is complete again");
        assert_eq!(released.state(), v1::ExecutionState::Running);
    }
    assert_eq!(refusal(case.release("another body", "r").await).1, "REQUEST_ID_REUSED");
    assert_eq!(refusal(case.release("once more", "s").await).1, "EXECUTION_NOT_QUARANTINED");
    let info = case.info().await;
    assert!(!info.quarantined);
    let past = info.quarantine.expect("the past quarantine is kept");
    assert_eq!(past.release_reason, "put it back");
    assert!(past.released_at.is_some());
    assert_eq!(case.quarantined().await, []);

    let task = case.server.poll().await;
    assert_eq!(task.r#type, "u");
    case.server.complete(&task, "2").await.expect("it is open");
    assert_eq!(case.server.outcome(&case.id).await.state(), v1::ExecutionState::Succeeded);
}
