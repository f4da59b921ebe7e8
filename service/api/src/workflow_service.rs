//! WorkflowService.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use recoup_core::definition::{StepKind, Workflow};
use recoup_core::id::WorkflowName;
use recoup_core::limits::DEFINITION_BYTES_MAX;
use recoup_core::plan::{Issue, Plan};
use recoup_core::retry::{RetryPolicy, Rule};
use recoup_proto::source::Positions;
use recoup_proto::v1::workflow_service_server::WorkflowService;
use recoup_proto::v1::{self, ErrorReason};
use recoup_store::{NewVersion, RegistryAnswer, RegistryOperation, WorkflowVersion, format};
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status};

use crate::context::{Context, no_namespace, no_workflow, registry_request};
use crate::convert::{definition, retry, text, time};
use crate::digest;
use crate::page::{Page, SCAN_MAX, SIZE_MAX};
use crate::status::{Error, Result, issue_reason, source_issue};

/// Issues in one answer.
const ISSUES_MAX: usize = 1_000;

pub struct Service {
    context: Arc<Context>,
}

/// A definition as it came.
enum Given {
    Message(Box<v1::WorkflowDefinition>),
    Source(v1::DefinitionSource),
}

/// A definition that was read, and what is wrong with it.
struct Checked {
    /// Unset: it could not be read.
    read: Option<(v1::WorkflowDefinition, Workflow)>,
    issues: Vec<v1::DefinitionIssue>,
}

/// Compiling a thousand expressions takes tens of milliseconds: off the threads that serve.
async fn check(given: Given) -> Result<Checked> {
    let checked = tokio::task::spawn_blocking(move || check_now(given)).await;
    checked.map_err(|error| Error::internal("checking a definition", &error))
}

fn check_now(given: Given) -> Checked {
    let (proto, positions) = match given {
        Given::Message(proto) => (*proto, None),
        Given::Source(source) => match source.parse() {
            Ok((proto, positions)) => (proto, Some(positions)),
            Err(error) => return Checked { read: None, issues: vec![source_issue(&error)] },
        },
    };
    if proto.encoded_len() > DEFINITION_BYTES_MAX {
        let issue = v1::DefinitionIssue {
            severity: v1::IssueSeverity::Error.into(),
            message: "the definition is over 1 MiB".into(),
            reason: ErrorReason::DefinitionTooLarge.into(),
            ..v1::DefinitionIssue::default()
        };
        return Checked { read: None, issues: vec![issue] };
    }
    let (workflow, mut issues) = definition::from_proto(&proto);
    let unreadable: Vec<String> = issues.iter().map(|issue| issue.field_path.clone()).collect();
    if let Err(found) = Plan::compile(&workflow, 1) {
        // What follows from a value that could not be read says nothing.
        let is_own = |issue: &Issue| {
            !unreadable.iter().any(|path| issue.field_path.starts_with(path.as_str()))
        };
        issues.extend(found.into_iter().filter(is_own));
    }
    let positions = positions.as_ref();
    let mut issues: Vec<_> =
        issues.iter().take(ISSUES_MAX).map(|issue| located(issue, positions)).collect();
    if positions.is_some() {
        issues.sort_by_key(|issue| (issue.line, issue.column));
    }
    Checked { read: Some((proto, workflow)), issues }
}

fn located(issue: &Issue, positions: Option<&Positions>) -> v1::DefinitionIssue {
    let place = positions.map(|positions| positions.find(&issue.field_path));
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    v1::DefinitionIssue {
        severity: v1::IssueSeverity::Error.into(),
        field_path: issue.field_path.clone(),
        line: place.map_or(0, |place| number(place.line)),
        column: place.map_or(0, |place| number(place.column)),
        message: issue.message.clone(),
        reason: issue_reason(issue).into(),
    }
}

/// The waits of every step and compensation, whether or not the rest of the definition can work.
fn schedules(workflow: &Workflow) -> Vec<v1::StepRetrySchedule> {
    let built_in = RetryPolicy::default();
    let inherited = workflow.defaults.retry.as_ref().unwrap_or(&built_in);
    let budget = |own: Option<Duration>| own.or(workflow.defaults.timeouts.schedule_to_close);
    let mut schedules = Vec::new();
    for step in workflow.steps.0.iter().chain(&workflow.finally.0) {
        let StepKind::Task(task) = &step.kind;
        let path = step.id.as_str();
        let policy = step.retry.as_ref().unwrap_or(inherited);
        schedules.push(schedule(path, false, policy, budget(task.timeouts.schedule_to_close)));
        if let Some(compensate) = &step.compensate {
            let policy = compensate.retry.as_ref().unwrap_or(inherited);
            let budget = budget(compensate.task.timeouts.schedule_to_close);
            schedules.push(schedule(path, true, policy, budget));
        }
    }
    schedules
}

fn schedule(
    path: &str,
    compensation: bool,
    policy: &RetryPolicy,
    budget: Option<Duration>,
) -> v1::StepRetrySchedule {
    let (delays, truncated) = delays(policy, budget);
    let of_rule = |(index, rule): (usize, &Rule)| {
        let (delays, truncated) = delays_of_rule(policy, rule, budget);
        let rule_index = u32::try_from(index).unwrap_or(u32::MAX);
        v1::RuleRetrySchedule { rule_index, delays, truncated }
    };
    v1::StepRetrySchedule {
        step_path: path.to_owned(),
        compensation,
        policy: Some(retry::resolved(policy)),
        delays,
        truncated,
        rules: policy.rules.iter().enumerate().map(of_rule).collect(),
    }
}

fn delays(
    policy: &RetryPolicy,
    schedule_to_close: Option<Duration>,
) -> (Vec<recoup_proto::Duration>, bool) {
    let (delays, truncated) = policy.delays(schedule_to_close);
    (delays.into_iter().map(time::duration).collect(), truncated)
}

/// As if every error were the rule's: its limits hold beside those of the policy.
fn delays_of_rule(
    policy: &RetryPolicy,
    rule: &Rule,
    budget: Option<Duration>,
) -> (Vec<recoup_proto::Duration>, bool) {
    let least = |a: Option<_>, b: Option<_>| a.into_iter().chain(b).min();
    let mut own = policy.clone();
    own.schedule = rule.schedule.clone().or_else(|| policy.schedule.clone());
    own.limits.max_attempts =
        policy.max_attempts().into_iter().chain(rule.limits.max_attempts).min();
    own.limits.max_duration = least(policy.limits.max_duration, rule.limits.max_duration);
    delays(&own, budget)
}

impl Service {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn register(
        &self,
        request: v1::RegisterWorkflowRequest,
    ) -> Result<v1::RegisterWorkflowResponse> {
        use v1::register_workflow_request::Workflow as Proto;
        let namespace = text::namespace(&request.namespace, "namespace")?;
        let body = v1::RegisterWorkflowRequest { request_id: String::new(), ..request.clone() };
        let digest = || digest::of_message(&body);
        let keyed = registry_request(namespace.clone(), request.request_id, digest)?;
        let before =
            self.context.answered(RegistryOperation::RegisterWorkflow, keyed.as_ref()).await?;
        if let Some(RegistryAnswer::WorkflowRegistered { name, version, is_new }) = before {
            return Ok(registered(&name, version, is_new));
        }
        self.context.check_namespace(&namespace).await?;
        let given = match request.workflow {
            Some(Proto::Definition(definition)) => Given::Message(Box::new(definition)),
            Some(Proto::Source(source)) => Given::Source(source),
            None => return Err(Error::required("workflow")),
        };
        let checked = check(given).await?;
        let Some((proto, workflow)) = checked.read.filter(|_| checked.issues.is_empty()) else {
            return Err(Error::definition(&checked.issues));
        };
        let new = NewVersion {
            namespace: namespace.clone(),
            name: workflow.name.clone(),
            digest: Sha256::digest(proto.encode_to_vec()).into(),
            format: format::CURRENT,
            definition: format::encode_workflow(&workflow),
        };
        let stored = self.context.store().register(&new, keyed.as_ref()).await;
        let (row, is_new) = stored.map_err(|error| match error {
            recoup_store::Error::NotFound => no_namespace(&namespace),
            other => other.into(),
        })?;
        self.context.forget(&namespace, &workflow.name);
        Ok(registered(&row.name, row.version, is_new))
    }

    async fn validate(
        &self,
        request: v1::ValidateWorkflowRequest,
    ) -> Result<v1::ValidateWorkflowResponse> {
        use v1::validate_workflow_request::Workflow as Proto;
        let namespace = text::namespace(&request.namespace, "namespace")?;
        self.context.check_namespace(&namespace).await?;
        let given = match request.workflow {
            Some(Proto::Definition(definition)) => Given::Message(Box::new(definition)),
            Some(Proto::Source(source)) => Given::Source(source),
            None => return Err(Error::required("workflow")),
        };
        let checked = check(given).await?;
        let (definition, schedules) = match checked.read {
            Some((proto, workflow)) => (Some(proto), schedules(&workflow)),
            None => (None, Vec::new()),
        };
        Ok(v1::ValidateWorkflowResponse {
            valid: checked.issues.is_empty(),
            issues: checked.issues,
            schedules,
            definition,
        })
    }

    async fn version(&self, request: &v1::GetWorkflowRequest) -> Result<v1::WorkflowVersion> {
        let namespace = text::namespace(&request.namespace, "namespace")?;
        let name = text::workflow(&request.name, "name")?;
        let store = self.context.store();
        let row = match request.version {
            Some(version) => match store.workflow(&namespace, &name, Some(version)).await? {
                Some(row) => row,
                None => {
                    return Err(self.context.why_no_version(&namespace, &name, version).await?);
                }
            },
            // The latest, retired or not.
            None => match store.list_versions(&namespace, &name, None, 1).await?.pop() {
                Some(row) => row,
                None => {
                    self.context.check_namespace(&namespace).await?;
                    return Err(no_workflow(&namespace, &name));
                }
            },
        };
        let definition = definition::to_proto(&stored(&row)?);
        Ok(v1::WorkflowVersion { definition: Some(definition), ..version(&row) })
    }

    async fn list(&self, request: v1::ListWorkflowsRequest) -> Result<v1::ListWorkflowsResponse> {
        let namespace = text::namespace(&request.namespace, "namespace")?;
        self.context.check_namespace(&namespace).await?;
        let filter = digest::of_message(&v1::ListWorkflowsRequest {
            namespace: namespace.as_str().to_owned(),
            page_size: 0,
            page_token: String::new(),
            ..request.clone()
        });
        let page = Page::read(request.page_size, &request.page_token, filter)?;
        let mut after = page.after_text()?.map(WorkflowName::from);
        let prefix = request.name_prefix.as_str();
        let mut workflows: Vec<v1::WorkflowSummary> = Vec::new();
        for _ in 0..SCAN_MAX / SIZE_MAX {
            let store = self.context.store();
            let rows = store.list_workflows(&namespace, after.as_ref(), SIZE_MAX).await?;
            let is_last = rows.len() < SIZE_MAX;
            for row in rows {
                let listed = row.name.as_str().starts_with(prefix)
                    && (request.include_retired || row.retired_at.is_none());
                if listed {
                    if workflows.len() == page.size {
                        let last = workflows.last().map_or("", |last| &last.name);
                        let next_page_token = page.token(last.as_bytes());
                        return Ok(v1::ListWorkflowsResponse { workflows, next_page_token });
                    }
                    workflows.push(summary(&row)?);
                }
                after = Some(row.name);
            }
            if is_last {
                return Ok(v1::ListWorkflowsResponse { workflows, ..Default::default() });
            }
        }
        let next_page_token = after.map_or(String::new(), |at| page.token(at.as_str().as_bytes()));
        Ok(v1::ListWorkflowsResponse { workflows, next_page_token })
    }

    async fn versions(
        &self,
        request: &v1::ListWorkflowVersionsRequest,
    ) -> Result<v1::ListWorkflowVersionsResponse> {
        let namespace = text::namespace(&request.namespace, "namespace")?;
        let name = text::workflow(&request.name, "name")?;
        let filter = digest::of(format!("{namespace} {name}").as_bytes());
        let page = Page::read(request.page_size, &request.page_token, filter)?;
        let before = page.after_exactly()?.map(u32::from_be_bytes);
        let store = self.context.store();
        let mut rows = store.list_versions(&namespace, &name, before, page.size + 1).await?;
        if rows.is_empty() && before.is_none() {
            self.context.check_namespace(&namespace).await?;
            return Err(no_workflow(&namespace, &name));
        }
        let has_more = rows.len() > page.size;
        rows.truncate(page.size);
        let last = rows.last().filter(|_| has_more);
        let next_page_token = last.map(|row| page.token(&row.version.to_be_bytes()));
        Ok(v1::ListWorkflowVersionsResponse {
            versions: rows.iter().map(version).collect(),
            next_page_token: next_page_token.unwrap_or_default(),
        })
    }

    async fn retire(
        &self,
        request: v1::RetireWorkflowRequest,
    ) -> Result<v1::RetireWorkflowResponse> {
        let namespace = text::namespace(&request.namespace, "namespace")?;
        let name = text::workflow(&request.name, "name")?;
        let body = v1::RetireWorkflowRequest { request_id: String::new(), ..request.clone() };
        let digest = || digest::of_message(&body);
        let keyed = registry_request(namespace.clone(), request.request_id, digest)?;
        let store = self.context.store();
        let retired = store.retire(&namespace, &name, request.version, keyed.as_ref()).await;
        let retired_at = match (retired, request.version) {
            (Ok(retired_at), _) => retired_at,
            (Err(recoup_store::Error::NotFound), Some(version)) => {
                return Err(self.context.why_no_version(&namespace, &name, version).await?);
            }
            (Err(recoup_store::Error::NotFound), None) => {
                self.context.check_namespace(&namespace).await?;
                return Err(no_workflow(&namespace, &name));
            }
            (Err(error), _) => return Err(error.into()),
        };
        self.context.forget(&namespace, &name);
        Ok(v1::RetireWorkflowResponse { retired_at: Some(time::timestamp(retired_at)) })
    }
}

fn registered(name: &WorkflowName, version: u32, created: bool) -> v1::RegisterWorkflowResponse {
    let (name, warnings) = (name.as_str().to_owned(), Vec::new());
    v1::RegisterWorkflowResponse { name, version, created, warnings }
}

fn stored(row: &WorkflowVersion) -> Result<Workflow> {
    format::decode_workflow(row.format, &row.definition)
        .map_err(|error| Error::internal("a stored definition cannot be read", &error))
}

fn version(row: &WorkflowVersion) -> v1::WorkflowVersion {
    v1::WorkflowVersion {
        namespace: row.namespace.as_str().to_owned(),
        name: row.name.as_str().to_owned(),
        version: row.version,
        definition: None,
        digest: row.digest.to_vec().into(),
        registered_at: Some(time::timestamp(row.created_at)),
        retired_at: row.retired_at.map(time::timestamp),
    }
}

fn summary(row: &WorkflowVersion) -> Result<v1::WorkflowSummary> {
    Ok(v1::WorkflowSummary {
        namespace: row.namespace.as_str().to_owned(),
        name: row.name.as_str().to_owned(),
        latest_version: row.version,
        description: stored(row)?.description,
        registered_at: Some(time::timestamp(row.created_at)),
        retired_at: row.retired_at.map(time::timestamp),
    })
}

#[tonic::async_trait]
impl WorkflowService for Service {
    async fn register_workflow(
        &self,
        request: Request<v1::RegisterWorkflowRequest>,
    ) -> Result<Response<v1::RegisterWorkflowResponse>, Status> {
        Ok(Response::new(self.register(request.into_inner()).await?))
    }

    async fn validate_workflow(
        &self,
        request: Request<v1::ValidateWorkflowRequest>,
    ) -> Result<Response<v1::ValidateWorkflowResponse>, Status> {
        Ok(Response::new(self.validate(request.into_inner()).await?))
    }

    async fn get_workflow(
        &self,
        request: Request<v1::GetWorkflowRequest>,
    ) -> Result<Response<v1::GetWorkflowResponse>, Status> {
        let workflow = self.version(request.get_ref()).await?;
        Ok(Response::new(v1::GetWorkflowResponse { workflow: Some(workflow) }))
    }

    async fn list_workflows(
        &self,
        request: Request<v1::ListWorkflowsRequest>,
    ) -> Result<Response<v1::ListWorkflowsResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    async fn list_workflow_versions(
        &self,
        request: Request<v1::ListWorkflowVersionsRequest>,
    ) -> Result<Response<v1::ListWorkflowVersionsResponse>, Status> {
        Ok(Response::new(self.versions(request.get_ref()).await?))
    }

    async fn retire_workflow(
        &self,
        request: Request<v1::RetireWorkflowRequest>,
    ) -> Result<Response<v1::RetireWorkflowResponse>, Status> {
        Ok(Response::new(self.retire(request.into_inner()).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Checked {
        let source = v1::DefinitionSource { text: text.into(), ..Default::default() };
        check_now(Given::Source(source))
    }

    #[test]
    fn every_issue_of_a_file_has_its_place() {
        let checked = checked(
            "name: a\nsteps:\n- id: s\n  when: 'inputt.x'\n  task: {type: t}\n  retry:\n    max_attempts: 0\n",
        );
        let issues: Vec<_> = checked
            .issues
            .iter()
            .map(|issue| (issue.field_path.as_str(), issue.line, issue.reason()))
            .collect();
        assert_eq!(
            issues,
            [
                ("steps[0].when", 4, ErrorReason::ExpressionInvalid),
                ("steps[0].retry.max_attempts", 7, ErrorReason::RetryPolicyInvalid),
            ]
        );
    }

    #[test]
    fn an_unknown_field_is_one_issue_with_its_place() {
        let checked = checked("name: a\nstepz: []\n");
        assert!(checked.read.is_none());
        assert_eq!((checked.issues[0].line, checked.issues[0].column), (2, 1));
        assert_eq!(checked.issues[0].reason(), ErrorReason::DefinitionInvalid);
    }

    #[test]
    fn schedules_are_those_of_policy_and_rules() {
        let checked = checked(
            "name: a\nsteps:\n- id: s\n  task: {type: t}\n  retry:\n    exponential: {initial_interval: 1s}\n    max_attempts: 4\n    rules:\n    - {error_types: [x], constant: {interval: 5s}, max_attempts: 2}\n- id: u\n  task: {type: t}\n  compensate: {task: {type: v}}\n",
        );
        assert_eq!(checked.issues, []);
        let (_, workflow) = checked.read.expect("it is well formed");
        let schedules = schedules(&workflow);
        let seconds = |delays: &[recoup_proto::Duration]| -> Vec<i64> {
            delays.iter().map(|delay| delay.seconds).collect()
        };
        assert_eq!(seconds(&schedules[0].delays), [1, 2, 4]);
        assert_eq!(seconds(&schedules[0].rules[0].delays), [5]);
        assert_eq!(seconds(&schedules[1].delays), [1, 2, 4, 8]);
        assert_eq!((schedules[2].step_path.as_str(), schedules[2].compensation), ("u", true));
        assert_eq!(schedules[2].policy.as_ref().and_then(|policy| policy.max_attempts), Some(5));
    }
}
