//! Gives a node its clock, its store and its channels.
//!
//! One task owns the node. It takes in everything that has arrived, lets the node decide, and carries out the
//! outputs. Each call to the store runs in a task of its own, and its answer is another input.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use recoup_store::Store;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{Instrument, Span, debug_span};

use crate::clock::Step;
use crate::handle::Engine;
use crate::load::{self, Plans};
use crate::node::Node;
use crate::node::io::{Adopted, Input, Notice, Output, WorkerKey, WorkerMessage};
use crate::options::Options;
use crate::process_clock::Clock;
use crate::request::{Reply, Request};
use crate::task::HandedTask;
use crate::unread::Unread;

/// How many requests may wait for the node.
const REQUESTS_MAX: usize = 8192;
/// The pause between attempts to record a step of the database's clock in the store.
const PAUSE_RETRY: Duration = Duration::from_secs(1);
/// How many requests are taken in before the node decides again.
const DRAIN_MAX: usize = 4096;

/// Begins a life on the store and runs the engine until it is stopped. Returns once the engine holds a lease;
/// before that, it would refuse every start.
pub async fn start(store: Arc<dyn Store>, options: Options) -> recoup_store::Result<Engine> {
    let clock = Arc::new(Clock::new(store.now().await?));
    let (requests, queued) = mpsc::channel(REQUESTS_MAX);
    let (answers, answered) = mpsc::unbounded_channel();
    let (feed_changed, feed_written) = watch::channel(0);
    let (begun, beginning) = oneshot::channel();
    let (writing, is_writing) = watch::channel(true);
    let plans = Arc::new(Plans::default());
    let seed =
        u64::from_le_bytes(*uuid::Uuid::new_v4().as_bytes().first_chunk().unwrap_or(&[7; 8]));
    let driver = Driver {
        node: Node::new(options, seed),
        store: store.clone(),
        plans: plans.clone(),
        unread: Arc::default(),
        clock: clock.clone(),
        queued,
        answers,
        answered,
        feed_changed,
        writing,
        sinks: HashMap::new(),
        begun: Some(begun),
    };
    tokio::spawn(driver.run());
    // The driver ends when it is stopped or when no handle is left, and neither is possible yet.
    beginning.await.expect("the driver runs until it is stopped");
    let next_worker = Arc::new(AtomicU64::new(1));
    Ok(Engine { requests, store, plans, clock, feed_written, is_writing, next_worker })
}

/// The store's answer to a call.
struct Answered {
    input: Input<Reply>,
    began: Instant,
}

struct Driver {
    node: Node<Reply>,
    store: Arc<dyn Store>,
    plans: Arc<Plans>,
    unread: Arc<Unread>,
    clock: Arc<Clock>,
    queued: mpsc::Receiver<Request>,
    /// Limited by the calls under way, because each message answers one output.
    answers: mpsc::UnboundedSender<Answered>,
    answered: mpsc::UnboundedReceiver<Answered>,
    feed_changed: watch::Sender<u64>,
    /// Whether the store accepts what the node writes.
    writing: watch::Sender<bool>,
    sinks: HashMap<WorkerKey, mpsc::UnboundedSender<WorkerMessage>>,
    /// Signalled once, when the node has a lease.
    begun: Option<oneshot::Sender<()>>,
}

impl Driver {
    async fn run(mut self) {
        let mut stopping: Option<oneshot::Sender<()>> = None;
        let mut inputs = Vec::new();
        self.node.begin(self.clock.both());
        loop {
            self.node.flush(self.clock.both());
            self.carry_out();
            if stopping.is_some() && self.node.is_quiet() {
                break;
            }
            let wait = self.node.next_timer().map(|at| at.since(self.clock.now()));
            tokio::select! {
                biased;
                Some(answered) = self.answered.recv() => self.take_answer(answered),
                taken = self.queued.recv_many(&mut inputs, DRAIN_MAX) => {
                    if taken == 0 && stopping.is_none() {
                        // No handle is left, so no request can come any more.
                        break;
                    }
                }
                () = sleep(wait) => {}
            }
            // Tasks that are ready to run may add their requests to this batch.
            tokio::task::yield_now().await;
            while let Ok(answered) = self.answered.try_recv() {
                self.take_answer(answered);
            }
            while inputs.len() < DRAIN_MAX
                && let Ok(request) = self.queued.try_recv()
            {
                inputs.push(request);
            }
            for request in inputs.drain(..) {
                self.take(request, &mut stopping);
            }
            self.node.tick(self.clock.both());
            let is_writing = self.node.is_writing();
            self.writing.send_if_modified(|was| std::mem::replace(was, is_writing) != is_writing);
        }
        if let Some(node) = self.node.node_id()
            && let Err(error) = self.store.leave(node).await
        {
            tracing::warn!(%error, "the lease could not be given back; it will expire");
        }
        if let Some(stopped) = stopping {
            // The caller may be gone.
            let _ = stopped.send(());
        }
    }

    fn take(&mut self, request: Request, stopping: &mut Option<oneshot::Sender<()>>) {
        let now = self.clock.both();
        match request {
            Request::Input(input) => {
                if let Input::Detach { worker } = input {
                    self.sinks.remove(&worker);
                }
                self.node.handle(input, now);
            }
            Request::Attach { worker, offer, sink } => {
                self.sinks.insert(worker, sink);
                self.node.handle(Input::Attach { worker, offer }, now);
            }
            Request::ToldClosed { session, reply } => {
                // The poll that asked may be gone.
                let _ = reply.send(self.node.told_closed(&session));
            }
            Request::Stop(done) => {
                self.node.stop();
                *stopping = Some(done);
            }
        }
    }

    fn take_answer(&mut self, Answered { input, began }: Answered) {
        if let Input::Joined(Ok(lease)) | Input::Renewed(_, Ok(lease)) = &input {
            let step = self.clock.correct(lease, began.elapsed());
            if let Some(step) = step {
                self.stepped(step);
            }
        }
        if let Input::Loaded { loaded: Ok(loaded), .. } = &input {
            self.clock.read(&loaded.found);
        }
        self.node.handle(input, self.clock.both());
        // Sends the next batch before anything else is done.
        self.carry_out();
        if self.node.node_id().is_some()
            && let Some(begun) = self.begun.take()
        {
            // The caller that started the engine may be gone.
            let _ = begun.send(());
        }
    }

    /// Pauses retention. After the clock was set wrongly, everything may look old enough to be deleted.
    fn stepped(&self, step: Step) {
        tracing::error!(
            %step,
            "the database's clock was set; retention pauses until `recoup namespace \
             resume-retention` confirms that the time is right"
        );
        let (store, clock, answers) =
            (self.store.clone(), self.clock.clone(), self.answers.clone());
        tokio::spawn(async move {
            while !answers.is_closed() {
                match store.pause_retention().await {
                    Ok(()) => return clock.step_noted(),
                    Err(error) => tracing::warn!(%error, "retention could not be paused yet"),
                }
                tokio::time::sleep(PAUSE_RETRY).await;
            }
        });
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.node.output() {
            match output {
                Output::Reply { reply, answer } => reply(answer),
                Output::Tell { worker, message } => self.tell(worker, message),
                Output::FeedWritten => self.feed_changed.send_modify(|count| *count += 1),
                output => self.call(output),
            }
        }
    }

    /// Sends a message to a worker. A message that cannot be sent counts as not handed over: the worker's
    /// link is gone or closed, and the request that says so is still on its way.
    fn tell(&mut self, worker: WorkerKey, message: WorkerMessage) {
        let unsent = match self.sinks.get(&worker) {
            Some(sink) => sink.send(message).err().map(|unsent| unsent.0),
            None => Some(message),
        };
        let Some(unsent) = unsent else {
            return;
        };
        let now = self.clock.both();
        self.sinks.remove(&worker);
        let session = self.node.session_of(worker).cloned();
        self.node.handle(Input::Detach { worker }, now);
        let tasks = match (unsent, session) {
            (WorkerMessage::Tasks(tasks), _) => tasks,
            (WorkerMessage::CancelRequested(task), Some(session)) => {
                let notice = Notice::CancelRequested;
                return self.node.handle(Input::Untold { session, task, notice }, now);
            }
            (WorkerMessage::Closed(task), Some(session)) => {
                let notice = Notice::Closed;
                return self.node.handle(Input::Untold { session, task, notice }, now);
            }
            _ => return,
        };
        for task in tasks {
            let HandedTask { id: task, handed_at, .. } = task;
            self.node.handle(Input::Undelivered { task, handed_at }, now);
        }
        self.node.flush(now);
    }

    /// Calls the store. The answer comes back as an input.
    fn call(&self, output: Output<Reply>) {
        let (store, answers) = (self.store.clone(), self.answers.clone());
        let (plans, options) = (self.plans.clone(), self.node.options().clone());
        let unread = self.unread.clone();
        let span = span(&output);
        let calling = async move {
            let began = Instant::now();
            let input = match output {
                Output::Join => {
                    let joined = store.join(&options.address, options.lease_ttl).await;
                    Input::Joined(joined)
                }
                Output::Renew { node, reached } => {
                    let renewed = store.renew(node, options.lease_ttl, reached).await;
                    Input::Renewed(node, renewed)
                }
                Output::Commit(node, batch) => {
                    Input::Committed(node, store.commit(node, &batch).await)
                }
                Output::StartKeyed(node, starts) => {
                    Input::KeyedStarted(node, store.start_keyed(node, &starts).await)
                }
                Output::Load(node, asked) => {
                    let loaded = load::load(&*store, &plans, node, &asked).await;
                    Input::Loaded { node, asked, loaded }
                }
                Output::Adopt { node, silent, limit } => {
                    let adopted = Adopted::ask(&*store, node, &silent, limit).await;
                    if adopted.is_ok() {
                        unread.tell(&*store, Instant::now()).await;
                    }
                    Input::Adopted(node, adopted)
                }
                Output::Heads(node, ids) => Input::Heads(node, store.heads(&ids).await),
                Output::Due(node, until, after, limit) => {
                    Input::Due(node, store.due(node, until, after, limit).await)
                }
                Output::Publish(node, idle) => {
                    Input::Published(node, store.publish_idle(node, &idle).await)
                }
                Output::Claim { node, idle, limit, lease, now } => {
                    Input::Claimed(node, store.claim(node, &idle, limit, lease, now).await)
                }
                Output::Overflow(node, tasks) => {
                    let result = store.overflow(node, &tasks).await;
                    Input::Overflowed { node, tasks, result }
                }
                Output::ReleaseQuarantine { node, execution, release, reply } => {
                    let released = store.release_quarantine(node, execution, &release).await;
                    Input::QuarantineReleased { node, execution, released, reply }
                }
                Output::WithdrawOverflow(keys) => {
                    if let Err(error) = store.withdraw(&keys).await {
                        // A row is only a hint: a node that claims it finds that it is void, and withdraws it again.
                        tracing::debug!(%error, "overflow rows stay until a node claims them");
                    }
                    return;
                }
                Output::Reply { .. } | Output::Tell { .. } | Output::FeedWritten => return,
            };
            // The driver may have ended in the meantime.
            let _ = answers.send(Answered { input, began });
        };
        tokio::spawn(calling.instrument(span));
    }
}

/// One span per call to the store, named after the call.
fn span(output: &Output<Reply>) -> Span {
    match output {
        Output::Commit(node, batch) => {
            debug_span!("commit", node = node.0, transitions = batch.transitions.len())
        }
        Output::StartKeyed(node, starts) => {
            debug_span!("start_keyed", node = node.0, starts = starts.len())
        }
        Output::Load(node, ids) => debug_span!("load", node = node.0, executions = ids.len()),
        Output::Join => debug_span!("join"),
        Output::Renew { node, .. } => debug_span!("renew", node = node.0),
        Output::Adopt { node, limit, .. } => debug_span!("adopt", node = node.0, limit),
        Output::Heads(node, ids) => debug_span!("heads", node = node.0, executions = ids.len()),
        Output::Due(node, ..) => debug_span!("due", node = node.0),
        Output::Publish(node, _) => debug_span!("publish_idle", node = node.0),
        Output::Claim { node, limit, .. } => debug_span!("claim", node = node.0, limit),
        Output::Overflow(node, tasks) => {
            debug_span!("overflow", node = node.0, tasks = tasks.len())
        }
        Output::ReleaseQuarantine { node, execution, .. } => {
            debug_span!("release_quarantine", node = node.0, %execution)
        }
        Output::WithdrawOverflow(tasks) => debug_span!("withdraw", tasks = tasks.len()),
        Output::Reply { .. } | Output::Tell { .. } | Output::FeedWritten => Span::none(),
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
