//! Checks definitions: for RegisterWorkflow and ValidateWorkflow, and for the command line without a
//! server.

use std::time::Duration;

use prost::Message;
use recoup_core::definition::{Step, StepKind, Workflow};
use recoup_core::limits::DEFINITION_BYTES_MAX;
use recoup_core::plan::{Issue, Plan};
use recoup_core::retry::{RetryPolicy, Rule};
use recoup_proto::source::Positions;
use recoup_proto::v1::{self, ErrorReason};

use crate::convert::enumeration::known;
use crate::convert::{definition, retry, time};
use crate::status::{Error, Result, issue_reason, source_issue};

/// When a caller may try again, if the server had no thread left to read a definition.
const RETRY: Duration = Duration::from_secs(1);
/// The most issues in one answer.
const ISSUES_MAX: usize = 1_000;

/// Checks the text of a workflow file as ValidateWorkflow does. Needs no server. Blocks while it compiles.
pub fn validate(source: v1::DefinitionSource) -> v1::ValidateWorkflowResponse {
    check_now(Given::Source(source)).into_response()
}

/// A definition as the caller gave it.
pub(crate) enum Given {
    Message(Box<v1::WorkflowDefinition>),
    Source(v1::DefinitionSource),
}

impl Given {
    pub(crate) fn source(source: v1::DefinitionSource) -> Result<Self> {
        known::<v1::DefinitionFormat>(source.format, "source.format")?;
        Ok(Self::Source(source))
    }
}

/// The result of a check: the definition, if it could be read, and its issues.
pub(crate) struct Checked {
    /// `None` if the definition could not be read.
    pub(crate) read: Option<(v1::WorkflowDefinition, Workflow)>,
    pub(crate) issues: Vec<v1::DefinitionIssue>,
}

/// Compiling a thousand expressions takes tens of milliseconds, so it runs outside the threads that serve
/// calls.
pub(crate) async fn check(given: Given) -> Result<Checked> {
    let checked = tokio::task::spawn_blocking(move || check_now(given)).await;
    let checked = checked.map_err(|error| Error::internal("checking a definition", &error))?;
    refuse_unread(checked)
}

/// A definition that could not be read for want of a thread has no issue: the call is refused.
fn refuse_unread(checked: Checked) -> Result<Checked> {
    match checked.issues.first() {
        Some(issue) if issue.reason() == ErrorReason::Overloaded => Err(Error {
            retry_after: Some(RETRY),
            ..Error::new(ErrorReason::Overloaded, issue.message.clone())
        }),
        _ => Ok(checked),
    }
}

impl Checked {
    pub(crate) fn into_response(self) -> v1::ValidateWorkflowResponse {
        let (definition, schedules) = match self.read {
            Some((proto, workflow)) => (Some(proto), schedules(&workflow)),
            None => (None, Vec::new()),
        };
        v1::ValidateWorkflowResponse {
            valid: self.issues.is_empty(),
            issues: self.issues,
            schedules,
            definition,
        }
    }
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
    let proto = definition::canonical_templates(proto);
    let (workflow, mut issues) = definition::from_proto(&proto);
    let unreadable: Vec<String> = issues.iter().map(|issue| issue.field_path.clone()).collect();
    if let Err(found) = Plan::compile(&workflow, 1) {
        // An issue at or below a value that could not be read is only a consequence of that, so it is left
        // out.
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

/// The retry schedule of every step and compensation, even if other parts of the definition are not valid.
fn schedules(workflow: &Workflow) -> Vec<v1::StepRetrySchedule> {
    let built_in = RetryPolicy::default();
    let inherited = workflow.defaults.retry.as_ref().unwrap_or(&built_in);
    let budget = |own: Option<Duration>| own.or(workflow.defaults.timeouts.schedule_to_close);
    let mut schedules = Vec::new();
    let mut add = |path: &str, step: &Step| {
        if let Some(task) = step.kind.task() {
            let policy = step.retry.as_ref().unwrap_or(inherited);
            schedules.push(schedule(path, false, policy, budget(task.timeouts.schedule_to_close)));
        }
        if let Some(compensate) = &step.compensate {
            let policy = compensate.retry.as_ref().unwrap_or(inherited);
            let budget = budget(compensate.task.timeouts.schedule_to_close);
            schedules.push(schedule(path, true, policy, budget));
        }
    };
    each_step(&workflow.steps.steps, "", &mut add);
    each_step(&workflow.on_failure, "", &mut add);
    each_step(&workflow.finally, "", &mut add);
    schedules
}

/// Visits the steps and those inside them, each with its path. `around` is the path of the step around
/// them, with a dot at its end unless it is empty.
fn each_step(steps: &[Step], around: &str, visit: &mut impl FnMut(&str, &Step)) {
    for step in steps {
        let path = format!("{around}{}", step.id);
        visit(&path, step);
        match &step.kind {
            StepKind::Parallel(parallel) => {
                for (id, branch) in &parallel.branches {
                    each_step(&branch.block.steps, &format!("{path}[{id}]."), visit);
                }
            }
            StepKind::ForEach(each) => each_step(&each.block.steps, &format!("{path}[]."), visit),
            _ => {
                for block in step.blocks() {
                    each_step(&block.steps, &format!("{path}."), visit);
                }
                continue;
            }
        }
        for catch in &step.catch {
            each_step(&catch.block.steps, &format!("{path}."), visit);
        }
    }
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

/// The delays if every error matched this rule. The limits of the rule apply together with those of the
/// policy.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Checked {
        let source = v1::DefinitionSource { text: text.into(), ..Default::default() };
        check_now(Given::Source(source))
    }

    #[test]
    fn every_issue_of_a_definition_file_has_its_line() {
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
    fn issues_of_branches_have_their_lines_and_their_steps_have_schedules() {
        let checked = checked(
            "name: a
steps:
- id: fan
  timeout: 0s
  parallel:
    branches:
      output:
        steps: [{id: s, task: {type: t}}]
      left:
        after:
        - output
        - lef
        steps:
        - id: u
          task: {type: t, scheduleToStart: 0s}
  catch: [{steps: [{id: w, task: {type: t}}]}]
",
        );
        let issues = checked
            .issues
            .iter()
            .map(|issue| (issue.field_path.as_str(), issue.line, issue.column, issue.reason()));
        let invalid = ErrorReason::DefinitionInvalid;
        let left = "steps[0].parallel.branches.left";
        assert_eq!(
            issues.collect::<Vec<_>>(),
            [
                ("steps[0].timeout", 4, 3, invalid),
                (format!("{left}.after[1]").as_str(), 12, 11, invalid),
                (format!("{left}.steps[0].task.schedule_to_start").as_str(), 15, 27, invalid),
            ]
        );
        let (_, workflow) = checked.read.expect("it is well formed");
        let paths: Vec<_> =
            schedules(&workflow).into_iter().map(|schedule| schedule.step_path).collect();
        assert_eq!(paths, ["fan[left].u", "fan[output].s", "fan.w"]);
    }

    #[test]
    fn issues_of_items_have_their_lines_and_their_steps_have_schedules() {
        let checked = checked(
            "name: a
steps:
- id: lines
  forEach:
    items: 'input.'
    itemKey: sku
    steps:
    - id: s
      task: {type: t, scheduleToStart: 0s}
  catch: [{steps: [{id: w, task: {type: t}}]}]
",
        );
        let issues = checked
            .issues
            .iter()
            .map(|issue| (issue.field_path.as_str(), issue.line, issue.column, issue.reason()));
        let invalid = ErrorReason::DefinitionInvalid;
        assert_eq!(
            issues.collect::<Vec<_>>(),
            [
                ("steps[0].for_each.items", 5, 5, ErrorReason::ExpressionInvalid),
                ("steps[0].for_each.item_key", 6, 5, invalid),
                ("steps[0].for_each.steps[0].task.schedule_to_start", 9, 23, invalid),
            ]
        );
        let (_, workflow) = checked.read.expect("it is well formed");
        let paths: Vec<_> =
            schedules(&workflow).into_iter().map(|schedule| schedule.step_path).collect();
        assert_eq!(paths, ["lines[].s", "lines.w"]);
    }

    #[test]
    fn definition_that_no_thread_could_read_is_refused_with_a_delay() {
        let unread = v1::DefinitionIssue {
            reason: ErrorReason::Overloaded.into(),
            ..v1::DefinitionIssue::default()
        };
        let refused = refuse_unread(Checked { read: None, issues: vec![unread] });
        let error = refused.err().expect("the call is refused");
        assert_eq!((error.reason, error.retry_after), (ErrorReason::Overloaded, Some(RETRY)));
        let read = refuse_unread(checked("name: a\nsteps: []\n")).expect("its issues are answered");
        assert_eq!(read.issues.len(), 1);
    }

    #[test]
    fn unknown_field_is_an_issue_with_its_line_and_column() {
        let checked = checked("name: a\nstepz: []\n");
        assert!(checked.read.is_none());
        assert_eq!((checked.issues[0].line, checked.issues[0].column), (2, 1));
        assert_eq!(checked.issues[0].reason(), ErrorReason::DefinitionInvalid);
    }

    #[test]
    fn retry_schedules_list_the_delays_of_policies_and_rules() {
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
