use std::pin::Pin;

use recoup_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use recoup_proto::v1::{
    CompleteTaskResponse, FailTaskResponse, HeartbeatTaskResponse, PollTasksResponse,
    ReleaseTaskRequest, ReleaseTaskResponse, StreamTasksRequest, StreamTasksResponse, Task,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::{Client, TaskError, Worker};

/// Answers the first poll with one task. Later polls wait for ever, except for the draining one.
struct Service {
    polls: mpsc::UnboundedSender<PollTasksRequest>,
    completed: mpsc::UnboundedSender<Bytes>,
    /// Each answer to a result takes a permit first.
    answering: Arc<Semaphore>,
}

/// Starts the service. Returns a client of it, the polls that it receives, and the tokens of completed
/// tasks.
async fn serve(
    answering: Arc<Semaphore>,
) -> (Client, mpsc::UnboundedReceiver<PollTasksRequest>, mpsc::UnboundedReceiver<Bytes>) {
    let (polls, polled) = mpsc::unbounded_channel();
    let (completed, completions) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let service = WorkerServiceServer::new(Service { polls, completed, answering });
    let serving = Server::builder().add_service(service);
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    let client = Client::connect(format!("http://{address}")).await.expect("it listens");
    (client, polled, completions)
}

fn tokens(request: &PollTasksRequest) -> Vec<Bytes> {
    request.held.clone().expect("the poll lists its held tasks").task_tokens
}

#[tonic::async_trait]
impl WorkerService for Service {
    type StreamTasksStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<StreamTasksResponse, Status>> + Send>>;

    async fn stream_tasks(
        &self,
        _: Request<Streaming<StreamTasksRequest>>,
    ) -> Result<Response<Self::StreamTasksStream>, Status> {
        Err(Status::unimplemented("no stream"))
    }

    async fn poll_tasks(
        &self,
        request: Request<PollTasksRequest>,
    ) -> Result<Response<PollTasksResponse>, Status> {
        let request = request.into_inner();
        let is_first = request.held.as_ref().is_some_and(|held| held.task_tokens.is_empty());
        let waits = !is_first && !request.draining;
        self.polls.send(request).expect("the test listens");
        if waits {
            std::future::pending::<()>().await;
        }
        let task = Task { task_token: "a".into(), r#type: "wait".into(), ..Task::default() };
        let tasks = if is_first { vec![task] } else { Vec::new() };
        Ok(Response::new(PollTasksResponse { tasks, cancellations: Vec::new() }))
    }

    async fn complete_task(
        &self,
        request: Request<CompleteTaskRequest>,
    ) -> Result<Response<CompleteTaskResponse>, Status> {
        self.completed.send(request.into_inner().task_token).expect("the test listens");
        self.answering.acquire().await.expect("it stays open").forget();
        Ok(Response::new(CompleteTaskResponse {}))
    }

    async fn fail_task(
        &self,
        _: Request<FailTaskRequest>,
    ) -> Result<Response<FailTaskResponse>, Status> {
        Err(Status::unimplemented("nothing fails"))
    }

    async fn release_task(
        &self,
        _: Request<ReleaseTaskRequest>,
    ) -> Result<Response<ReleaseTaskResponse>, Status> {
        Err(Status::unimplemented("nothing is released"))
    }

    async fn heartbeat_task(
        &self,
        _: Request<HeartbeatTaskRequest>,
    ) -> Result<Response<HeartbeatTaskResponse>, Status> {
        Ok(Response::new(HeartbeatTaskResponse { cancel_requested: false }))
    }
}

#[tokio::test]
async fn a_stopping_worker_sends_one_draining_poll_with_its_held_tasks() {
    let (client, mut polled, mut completions) = serve(Arc::new(Semaphore::new(1))).await;
    let (finish, stop) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (finishing, stopped) = (finish.clone(), stop.clone());
    let handler = move |_: TaskContext, (): ()| {
        let finishing = finishing.clone();
        async move {
            finishing.notified().await;
            Ok::<(), TaskError>(())
        }
    };
    let worker = Worker::builder(client).slots(2).task("wait", handler);
    let worker = worker.transport(super::super::Transport::Unary).build().expect("a valid set-up");
    let running = tokio::spawn(worker.run(async move { stopped.notified().await }));

    let first = polled.recv().await.expect("a poll");
    assert!(tokens(&first).is_empty() && !first.draining && first.max_tasks == 2);
    let second = polled.recv().await.expect("another");
    assert_eq!((tokens(&second), second.draining), (vec![Bytes::from("a")], false));
    stop.notify_one();
    // The second poll is cut off. Tasks that it may have received are not in the list.
    let farewell = polled.recv().await.expect("the last");
    assert_eq!((tokens(&farewell), farewell.draining), (vec![Bytes::from("a")], true));
    assert_eq!(farewell.session_id, second.session_id);
    assert!(!running.is_finished(), "the worker still holds a task");
    finish.notify_one();
    running.await.expect("no panic").expect("the worker ends without an error");
    assert_eq!(completions.recv().await, Some(Bytes::from("a")));
    assert!(polled.try_recv().is_err(), "the worker polled after the draining poll");
}

#[tokio::test]
async fn a_slot_is_freed_when_its_handler_ends_before_the_result_is_acknowledged() {
    let answering = Arc::new(Semaphore::new(0));
    let (client, mut polled, mut completions) = serve(answering.clone()).await;
    let stop = Arc::new(Notify::new());
    let stopped = stop.clone();
    let worker = Worker::builder(client)
        .slots(1)
        .task("wait", |_: TaskContext, (): ()| async { Ok::<(), TaskError>(()) });
    let worker = worker.transport(super::super::Transport::Unary).build().expect("a valid set-up");
    let running = tokio::spawn(worker.run(async move { stopped.notified().await }));

    assert_eq!(polled.recv().await.expect("a poll").max_tasks, 1);
    assert_eq!(completions.recv().await, Some(Bytes::from("a")));
    // The result has no answer yet, so the worker still holds the task, and asks for the next one.
    let second = polled.recv().await.expect("another");
    assert_eq!((tokens(&second), second.max_tasks), (vec![Bytes::from("a")], 1));
    stop.notify_one();
    let farewell = polled.recv().await.expect("the last");
    assert_eq!((tokens(&farewell), farewell.draining), (vec![Bytes::from("a")], true));
    assert!(!running.is_finished(), "its result is not acknowledged yet");
    answering.add_permits(1);
    running.await.expect("no panic").expect("the worker ends without an error");
}
