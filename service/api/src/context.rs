//! The state that all services share.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use recoup_core::id::{ExecutionId, Namespace, WorkflowName};
use recoup_core::plan::Plan;
use recoup_engine::Engine;
use recoup_proto::v1::ErrorReason;
use recoup_store::format::Row;
use recoup_store::{RegistryAnswer, RegistryOperation, RegistryRequest, Store, StoredTransition};
use tokio::sync::watch;
use uuid::Uuid;

use crate::ApiOptions;
use crate::feed_streams::FeedStreams;
use crate::status::{Error, Result};

/// How long a namespace that was found is assumed to exist.
const NAMESPACE_SEEN: Duration = Duration::from_secs(10);
/// How long a workflow version that was not retired is assumed not to be.
const VERSION_SEEN: Duration = Duration::from_secs(1);
const SEEN_MAX: usize = 10_000;
/// How many transitions of a history are read at a time.
const READ_MAX: usize = 100;

pub struct Context {
    pub engine: Engine,
    pub shutdown: watch::Receiver<bool>,
    pub retention: Duration,
    /// Changes with every acknowledgement that this server accepts, and when a stream takes over a
    /// subscription.
    pub acknowledged: watch::Sender<u64>,
    pub feed_streams: FeedStreams,
    /// How many bytes of events are read at a time for one reader of the feed.
    pub feed_page_bytes: usize,
    /// How many times a write of a subscription failed because another writer had changed it first.
    pub races_lost: AtomicU64,
    namespaces: Seen<Namespace>,
    versions: Seen<(Namespace, WorkflowName, u32)>,
}

impl Context {
    pub fn new(engine: Engine, options: ApiOptions) -> Self {
        Self {
            engine,
            shutdown: options.shutdown,
            retention: options.retention,
            acknowledged: watch::Sender::new(0),
            feed_streams: FeedStreams::new(options.feed_streams_max),
            feed_page_bytes: options.feed_page_bytes,
            races_lost: AtomicU64::new(0),
            namespaces: Seen::new(NAMESPACE_SEEN),
            versions: Seen::new(VERSION_SEEN),
        }
    }

    pub fn store(&self) -> &dyn Store {
        &**self.engine.store()
    }

    /// Checks that rows of a format may be written. The permitted formats only rise, so the permission
    /// lasts.
    ///
    /// # Errors
    /// `FORMAT_NOT_FINALIZED` if the format may not be written yet.
    pub async fn permit(&self, row: Row, needed: u16) -> Result<()> {
        Ok(self.store().formats().await?.writable.permit(row, needed)?)
    }

    pub fn is_stopping(&self) -> bool {
        *self.shutdown.borrow()
    }

    /// Completes when the server is about to stop.
    pub async fn stopping(&self) {
        // An error means that the sender is gone, which also means that the server is stopping.
        let _ = self.shutdown.clone().wait_for(|stop| *stop).await;
    }

    /// Awaits a call of the engine that waits for an execution to end. If the server is about to stop, the
    /// engine is closed, so that the call answers at once.
    pub async fn until_stop<T>(&self, call: impl Future<Output = T>) -> T {
        let mut call = std::pin::pin!(call);
        tokio::select! {
            biased;
            answer = &mut call => return answer,
            () = self.stopping() => {}
        }
        self.engine.close().await;
        call.await
    }

    pub fn new_execution_id(&self) -> ExecutionId {
        // Bytes 6 and 8 of a UUID v4 hold its version and variant, so they are not random.
        let [a, b, c, d, e, f, _, _, _, g, h, i, j, ..] = *Uuid::new_v4().as_bytes();
        ExecutionId::new(self.engine.now(), [a, b, c, d, e, f, g, h, i, j])
    }

    /// The earlier answer to a registry mutation with the same request id. Used by calls that would
    /// otherwise do work, or refuse the call, before the store could find the repetition.
    pub async fn answered(
        &self,
        operation: RegistryOperation,
        request: Option<&RegistryRequest>,
    ) -> Result<Option<RegistryAnswer>> {
        match request {
            Some(request) => Ok(self.store().answered(operation, request).await?),
            None => Ok(None),
        }
    }

    /// Refuses the call if the namespace does not exist.
    pub async fn check_namespace(&self, namespace: &Namespace) -> Result<()> {
        if self.namespaces.has(namespace) {
            return Ok(());
        }
        if self.store().namespace(namespace).await?.is_none() {
            return Err(no_namespace(namespace));
        }
        self.namespaces.add(namespace.clone());
        Ok(())
    }

    /// Reads the history after a sequence number, in order, until `find` returns something.
    pub async fn find_in_history<T>(
        &self,
        execution: ExecutionId,
        after: u64,
        mut find: impl FnMut(&StoredTransition) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut behind = after;
        loop {
            let rows = self.store().history(execution, behind, READ_MAX).await?;
            for row in &rows {
                if let Some(found) = find(row)? {
                    return Ok(Some(found));
                }
            }
            match rows.last() {
                Some(last) if rows.len() == READ_MAX => behind = last.sequence,
                _ => return Ok(None),
            }
        }
    }

    /// The plan that a new execution will follow.
    pub async fn plan(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
    ) -> Result<Arc<Plan>> {
        let Some(version) = version else {
            let plan = self.engine.plan(namespace, name, None).await?;
            return match plan {
                Some(plan) => Ok(plan),
                None => Err(self.why_no_workflow(namespace, name).await?),
            };
        };
        let key = (namespace.clone(), name.clone(), version);
        if !self.versions.has(&key) {
            match self.store().workflow(namespace, name, Some(version)).await? {
                None => return Err(self.why_no_version(namespace, name, version).await?),
                Some(row) if row.retired_at.is_some() => {
                    let message = format!("version {version} of `{name}` is retired");
                    return Err(Error::new(ErrorReason::WorkflowRetired, message));
                }
                Some(_) => self.versions.add(key),
            }
        }
        let plan = self.engine.plan(namespace, name, Some(version)).await?;
        plan.ok_or_else(|| no_version(name, version))
    }

    async fn why_no_workflow(&self, namespace: &Namespace, name: &WorkflowName) -> Result<Error> {
        self.check_namespace(namespace).await?;
        let versions = self.store().list_versions(namespace, name, None, 1).await?;
        Ok(if versions.is_empty() {
            no_workflow(namespace, name)
        } else {
            let message = format!("all versions of `{name}` are retired");
            Error::new(ErrorReason::WorkflowRetired, message)
        })
    }

    pub async fn why_no_version(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: u32,
    ) -> Result<Error> {
        self.check_namespace(namespace).await?;
        let versions = self.store().list_versions(namespace, name, None, 1).await?;
        Ok(if versions.is_empty() {
            no_workflow(namespace, name)
        } else {
            no_version(name, version)
        })
    }

    /// Drops what was remembered about a workflow that was registered or retired through this server.
    pub fn forget(&self, namespace: &Namespace, name: &WorkflowName) {
        self.versions.clear();
        self.engine.forget_latest(namespace, name);
    }
}

pub fn no_namespace(namespace: &Namespace) -> Error {
    Error::new(ErrorReason::NamespaceNotFound, format!("there is no namespace `{namespace}`"))
}

pub fn no_workflow(namespace: &Namespace, name: &WorkflowName) -> Error {
    let message = format!("there is no workflow `{name}` in the namespace `{namespace}`");
    Error::new(ErrorReason::WorkflowNotFound, message)
}

fn no_version(name: &WorkflowName, version: u32) -> Error {
    let message = format!("the workflow `{name}` has no version {version}");
    Error::new(ErrorReason::WorkflowVersionNotFound, message)
}

/// A panic cannot leave these maps half changed, so a poisoned lock is safe to use.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers for a short time which keys exist. Absence is not remembered, so a new key is found at once.
struct Seen<K> {
    ttl: Duration,
    at: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash> Seen<K> {
    fn new(ttl: Duration) -> Self {
        Self { ttl, at: Mutex::default() }
    }

    fn has(&self, key: &K) -> bool {
        lock(&self.at).get(key).is_some_and(|at| at.elapsed() < self.ttl)
    }

    fn add(&self, key: K) {
        let mut seen = lock(&self.at);
        if seen.len() >= SEEN_MAX {
            seen.clear();
        }
        seen.insert(key, Instant::now());
    }

    fn clear(&self) {
        lock(&self.at).clear();
    }
}
