//! The handle to a running engine.

use std::sync::Arc;
use std::time::Duration;

use recoup_core::command::{Command, RequestId, TaskId};
use recoup_core::id::{ExecutionId, Namespace, WorkflowName};
use recoup_core::outcome::Outcome;
use recoup_core::payload::Payload;
use recoup_core::plan::Plan;
use recoup_core::retry::Decision;
use recoup_core::time::Timestamp;
use recoup_store::{Release, Store};
use tokio::sync::{mpsc, oneshot, watch};

use crate::load::{PartialExecution, Plans, read_partial};
use crate::node::io::{
    Answer, Input, Notice, Offer, Refusal, SessionKey, Snapshot, StartSpec, WorkerKey,
    WorkerMessage,
};
use crate::process_clock::Clock;
use crate::request::{Reply, Request};

/// A handle to a running engine. It is cheap to clone. The engine ends when [`Engine::stop`] is called or
/// when no handle is left.
#[derive(Clone)]
pub struct Engine {
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) plans: Arc<Plans>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) feed_written: watch::Receiver<u64>,
    pub(crate) is_writing: watch::Receiver<bool>,
    pub(crate) next_worker: Arc<std::sync::atomic::AtomicU64>,
}

/// The result of a start.
#[derive(Clone, Debug)]
pub struct Started {
    /// The state right after the start was committed; for [`Engine::run`], the state at the end or when the
    /// wait was over.
    pub outcome: Box<Outcome>,
    /// Whether this request started the execution, now or when it was first sent. False if an existing
    /// execution had the key.
    pub is_own: bool,
}

/// What a worker offers to take; see [`Offer`].
pub type Worker = Offer;

/// A worker's connection to the engine. Dropping it detaches the worker. The tasks that the worker holds stay
/// with its session until the session ends.
pub struct WorkerLink {
    key: WorkerKey,
    engine: Engine,
    pub messages: mpsc::UnboundedReceiver<WorkerMessage>,
}

impl Engine {
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The present store time: the database's time, followed on the monotonic clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The time by which retention decides what is old. `None` for a moment after the database's clock was
    /// set, during which nothing may be deleted.
    pub fn retention_time(&self) -> Option<Timestamp> {
        self.clock.for_retention()
    }

    /// Starts an execution and answers once the start is durable.
    pub async fn start(&self, spec: StartSpec) -> Result<Started, Refusal> {
        self.ask_start(StartSpec { until: None, ..spec }).await
    }

    /// Starts an execution and answers when it has ended, or after `wait` with the state that it has then.
    pub async fn run(&self, spec: StartSpec, wait: Duration) -> Result<Started, Refusal> {
        let until = Some(self.now() + wait);
        self.ask_start(StartSpec { until, ..spec }).await
    }

    async fn ask_start(&self, spec: StartSpec) -> Result<Started, Refusal> {
        let answer = self.ask(|reply| Input::Start { spec: Box::new(spec), reply }).await;
        if let Err(Refusal::NotFinalized(refused)) = &answer {
            // The node learns with its next renewal what an operator has allowed. Until then it must not say
            // that nothing was done: another node may have accepted the same start already.
            let formats = self.store.formats().await;
            let formats = formats.map_err(|error| Refusal::Unavailable(error.to_string()))?;
            if formats.writable.permit(refused.row, refused.needed).is_ok() {
                let why = "the server has not read yet which formats it may write";
                return Err(Refusal::Unavailable(why.to_owned()));
            }
        }
        answer.map(started)
    }

    /// Answers when the execution has ended, or after `wait` with the state that it has then.
    pub async fn await_end(
        &self,
        execution: ExecutionId,
        wait: Duration,
    ) -> Result<Box<Outcome>, Refusal> {
        let until = self.now() + wait;
        let answer = self.ask(|reply| Input::Await { execution, until, reply }).await?;
        Ok(started(answer).outcome)
    }

    /// Decides a command and answers with the new state once it is durable.
    pub async fn command(
        &self,
        execution: ExecutionId,
        command: Command,
        request: Option<RequestId>,
    ) -> Result<Box<Outcome>, Refusal> {
        let answer = self.ask(|reply| Input::Submit { execution, command, request, reply }).await?;
        Ok(started(answer).outcome)
    }

    /// Reports how an attempt ended, and answers once the report is durable. The answer contains the retry
    /// decision if the attempt failed and this report is the one that was recorded.
    pub async fn report(
        &self,
        execution: ExecutionId,
        command: Command,
    ) -> Result<Option<Decision>, Refusal> {
        let request = None;
        match self.ask(|reply| Input::Submit { execution, command, request, reply }).await? {
            Answer::Recorded { decision, .. } => Ok(decision),
            _ => Err(Refusal::Stopping),
        }
    }

    /// As [`Engine::command`], but answered through a callback, for streams that carry many commands. Waits
    /// only for room in the engine's queue.
    pub async fn submit(&self, execution: ExecutionId, command: Command, reply: Reply) {
        let input = Input::Submit { execution, command, request: None, reply };
        if let Err(mpsc::error::SendError(Request::Input(Input::Submit { reply, .. }))) =
            self.requests.send(Request::Input(input)).await
        {
            reply(Err(Refusal::Stopping));
        }
    }

    pub async fn snapshot(&self, execution: ExecutionId) -> Result<Snapshot, Refusal> {
        match self.ask(|reply| Input::Get { execution, reply }).await? {
            Answer::Snapshot(snapshot) => Ok(snapshot),
            _ => Err(Refusal::Stopping),
        }
    }

    /// Ends the quarantine of an execution. This node becomes its owner, reads it and continues it. Answers
    /// with the state that it then has, or with [`Refusal::Quarantined`] if the cause of the quarantine still
    /// exists.
    pub async fn release_quarantine(
        &self,
        execution: ExecutionId,
        release: Release,
    ) -> Result<Box<Outcome>, Refusal> {
        let answer =
            self.ask(|reply| Input::ReleaseQuarantine { execution, release, reply }).await?;
        Ok(started(answer).outcome)
    }

    /// What is known about an execution that no node continues. `None` if there is no such execution.
    pub async fn read_partial(
        &self,
        execution: ExecutionId,
    ) -> recoup_store::Result<Option<PartialExecution>> {
        read_partial(&*self.store, &self.plans, execution).await
    }

    /// Records a heartbeat. Returns whether the worker should stop its work. `details`: the progress of the
    /// worker; `None` keeps the details of the last heartbeat.
    pub async fn heartbeat(&self, task: TaskId, details: Option<Payload>) -> Result<bool, Refusal> {
        let (beat, said) = (task.clone(), details.clone());
        match self.ask(|reply| Input::Heartbeat { task: beat, details: said, reply }).await? {
            Answer::Beat { cancel_requested } => Ok(cancel_requested),
            // The execution had to be read first, and the start was recorded in the process.
            Answer::Recorded { cancel_requested, .. } => {
                if details.is_some() {
                    // Now there is an attempt that can keep the details.
                    self.ask(|reply| Input::Heartbeat { task, details, reply }).await?;
                }
                Ok(cancel_requested)
            }
            Answer::Done { .. } | Answer::Snapshot(_) | Answer::Released => Err(Refusal::Stopping),
        }
    }

    /// Gives back a task that was not started, on behalf of the session that it was handed to; an empty id
    /// means no session. If a different worker has the task by now, it stays there.
    pub async fn release(&self, task: TaskId, session: String) -> Result<(), Refusal> {
        self.ask(|reply| Input::Release { task, session, reply }).await.map(drop)
    }

    /// Gives back tasks that were handed over and never left this process. Never waits.
    pub fn undelivered(&self, tasks: Vec<(TaskId, Timestamp)>) {
        if tasks.is_empty() {
            return;
        }
        let engine = self.clone();
        tokio::spawn(async move {
            for (task, handed_at) in tasks {
                engine.tell(Input::Undelivered { task, handed_at }).await;
            }
        });
    }

    /// Keeps notices that have not reached a session for its next stream or poll. Never waits.
    pub fn untold(&self, session: SessionKey, notices: Vec<(TaskId, Notice)>) {
        if notices.is_empty() {
            return;
        }
        let engine = self.clone();
        tokio::spawn(async move {
            for (task, notice) in notices {
                engine.tell(Input::Untold { session: session.clone(), task, notice }).await;
            }
        });
    }

    /// Notes that a message came from this session, so its worker is alive.
    pub async fn touch(&self, session: SessionKey) {
        self.tell(Input::Touch { session }).await;
    }

    /// Connects a worker. Tasks arrive on [`WorkerLink::messages`] as long as the worker has credit.
    pub async fn attach(&self, offer: Worker) -> Result<WorkerLink, Refusal> {
        let key = self.next_worker.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (sink, messages) = mpsc::unbounded_channel();
        let request = Request::Attach { worker: key, offer, sink };
        self.requests.send(request).await.map_err(|_| Refusal::Stopping)?;
        Ok(WorkerLink { key, engine: self.clone(), messages })
    }

    /// Tasks that the latest poll of a session listed although an earlier poll has delivered the notice that
    /// their attempts are closed. Empty if the engine is stopping.
    pub async fn told_closed(&self, session: SessionKey) -> Vec<TaskId> {
        let (reply, told) = oneshot::channel();
        let request = Request::ToldClosed { session, reply };
        if self.requests.send(request).await.is_err() {
            return Vec::new();
        }
        told.await.unwrap_or_default()
    }

    /// The plan of a workflow version. If `version` is `None`: of the latest version that is not retired.
    pub async fn plan(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
    ) -> Result<Option<Arc<Plan>>, Refusal> {
        let plan = self.plans.find(&*self.store, namespace, name, version).await;
        plan.map_err(Refusal::Unavailable)
    }

    /// Call this after a version was registered or retired on this node, so that the next start sees the
    /// change at once.
    pub fn forget_latest(&self, namespace: &Namespace, name: &WorkflowName) {
        self.plans.forget_latest(namespace, name);
    }

    /// The value changes whenever this node has committed failure events.
    pub fn feed_written(&self) -> watch::Receiver<u64> {
        self.feed_written.clone()
    }

    /// Whether the store accepts what this node writes. False while a change of an execution or the renewal
    /// of the lease has waited for longer than [`Options::commit_wait`](crate::Options).
    pub fn is_writing(&self) -> bool {
        *self.is_writing.borrow()
    }

    /// Stops the engine: it accepts nothing new, answers pending requests, gives its lease back and ends.
    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        if self.requests.send(Request::Stop(done)).await.is_ok() {
            // An error means that the engine has ended as well.
            let _ = stopped.await;
        }
    }

    /// For a server that is about to stop and accepts no new connections. From now on, callers that wait for
    /// the end of an execution are answered at once with its present state, and no worker is given up because
    /// it is silent: the worker may find no server to report to.
    pub async fn close(&self) {
        self.tell(Input::Close).await;
    }

    async fn tell(&self, input: Input<Reply>) {
        // An engine that has stopped does not need the message.
        let _ = self.requests.send(Request::Input(input)).await;
    }

    async fn ask(&self, input: impl FnOnce(Reply) -> Input<Reply>) -> Result<Answer, Refusal> {
        let (sender, answer) = oneshot::channel();
        // The caller may be gone by the time there is an answer.
        let reply: Reply = Box::new(move |answer| drop(sender.send(answer)));
        self.requests.send(Request::Input(input(reply))).await.map_err(|_| Refusal::Stopping)?;
        answer.await.map_err(|_| Refusal::Stopping)?
    }
}

fn started(answer: Answer) -> Started {
    match answer {
        Answer::Done { outcome, is_own } => Started { outcome, is_own },
        Answer::Recorded { .. } | Answer::Snapshot(_) | Answer::Beat { .. } | Answer::Released => {
            unreachable!("only reports of workers and gets are answered so")
        }
    }
}

impl WorkerLink {
    /// Adds credit for this many more tasks. Each hand-over uses one credit.
    pub async fn add_credit(&self, tasks: u32) {
        self.engine.tell(Input::Credit { worker: self.key, tasks }).await;
    }

    /// Stops tasks from being handed to this connection.
    pub async fn drain(&self) {
        self.engine.tell(Input::Drain { worker: self.key }).await;
    }
}

impl Drop for WorkerLink {
    fn drop(&mut self) {
        let (engine, worker) = (self.engine.clone(), self.key);
        let input = Input::Detach { worker };
        if let Err(mpsc::error::TrySendError::Full(request)) =
            engine.requests.try_send(Request::Input(input))
        {
            // The queue is full, so the message waits for room in a task of its own.
            tokio::spawn(async move { drop(engine.requests.send(request).await) });
        }
    }
}
